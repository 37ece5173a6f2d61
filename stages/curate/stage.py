"""Curation: leaves out records that are no use, cuts recordings into clips, and keeps apart what models are judged by.

In: records. Out, below the artifact:
    records/shard-*.parquet       the records that are left, in their order, in shards of the same names
    curation/left_out.jsonl       {source, path, part, step, what, reason} of each record and caption that went
    curation.html                 what went by each step and why, with samples

It reads and makes records, so what follows reads what it leaves. Steps run in the config's order: filters in workers,
a shard at a time, up to a comparison, which is made where the stage runs, of signatures that the workers made
(`stages.curate.phases`). Clips have the split of their recording, and of copies the one stays that lies in the most
held-out split, so nothing that ingest put on one side of a split comes to the other; where steps make new content, what
is trained on and has a near twin that is held out goes (`stages.curate.held_out`).

Memory: a worker holds one shard; the stage 25 bytes a signature and what `stages.ingest.splitting.twins` says.
Everything is written down as it is done: a killed run goes on after its last shard, and ends with the same records.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage
from omniloom.infra.errors import InputError, within
from omniloom.stages.curate.config import Config
from omniloom.stages.curate.steps.base import Step
from omniloom.stages.curate.steps.table import STEPS

if TYPE_CHECKING:
    from omniloom.stages.base import StageContext
    from omniloom.stages.curate.phases import Work

VERSION = 1

__all__ = ["VERSION", "Config", "check", "curate", "listing", "resolved", "run", "summary"]


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """Check what steps can tell to be wrong, and that evaluation sources are sources of ingest."""
    for number, step in enumerate(config.steps):
        with within(f"steps.{number}"):
            STEPS[step.kind].check(step)
    ingest: Any = upstream.get("records")
    if names := [ingest.source_name(index) for index in range(len(getattr(ingest, "sources", ())))]:
        for number, name in enumerate(config.evaluation_sources):
            if name not in names:
                raise InputError(
                    f"no source {name!r}; the sources are {', '.join(names)}", field=f"evaluation_sources.{number}"
                )


def resolved(config: Config, upstream: Mapping[str, Any]) -> Any:
    """What later stages' checks see: the config of the stage whose records these are, with their kinds."""
    return upstream.get("records")


def listing(config: Config) -> list[dict]:
    """Facts about the evaluation sets' files, and about code that steps name."""
    from omniloom.stages.ingest import sources

    found = [facts for step in config.steps if (facts := STEPS[step.kind].outside(step)) is not None]
    if not config.evaluation_sets:
        return found
    from omniloom.stages.curate.held_out import sets_of

    try:
        return [*found, *sources.listing(sets_of(config))]
    except InputError as error:
        error.field = (error.field or "").replace("sources", "evaluation_sets", 1)
        raise


def run(context: StageContext) -> dict:
    """The counts of the records that are left, and of what went by each step. InputError where nothing is left."""
    from omniloom.stages.data import records

    facts = curate(context.config, context.records.uri, context.state, context.output, context.progress)
    counts = records.counts(context.output)
    if not counts["records"]:
        raise InputError(f"leaves none of {facts['records']:,} records; see what went: omniloom curate", field="steps")
    left = {f"left_out_{name}": count for name, count in facts["left"].items()}
    return {**counts, "left_out": sum(facts["left"].values()), **left}


def summary(metrics: dict) -> str:
    """What a person is told when the stage is done."""
    left = {name.removeprefix("left_out_"): n for name, n in metrics.items() if name.startswith("left_out_")}
    told = ", ".join(f"{name} {count:,}" for name, count in left.items() if count)
    return f"records {metrics['records']:,}; left out {metrics['left_out']:,}" + (f" ({told})" if told else "")


def curate(
    config: Config, records_uri: str, state: str, output: str | None, progress: Callable[[int, int, str], None]
) -> dict:
    """Curate the artifact of records at `records_uri`. Without an `output` nothing is made: a dry run. Returns
    {"records": how many there were, "left": {step: how many records went}, "html": the page}."""
    from omniloom.stages.curate import deciding, page
    from omniloom.stages.data import records

    shards = records.shards(records_uri)
    work = _work(config, shards, state, output)
    views: list[dict] = [{"uri": uri, "rows": None} for uri in shards]
    before, reports, done = "", [], 0
    for phase in work.phases:
        tasks = [{"phase": phase.number, "shard": n, "view": view, "before": before} for n, view in enumerate(views)]
        found: dict[int, dict] = {}
        for number, report in _each(work, tasks, config.num_workers):
            if error := report.get("error"):
                raise InputError(error["message"], field=error["field"], file=error["file"])
            found[number] = report
            done += 1
            progress(done, len(work.phases) * len(shards), "shards")
        reports.append([found[number] for number in sorted(found)])
        views = [report["view"] for report in reports[-1]]
        deciding.decide(phase, state, views, config.on_overlap == "refuse")
        before = phase.comparison.label if phase.comparison else ""
    left = _left(work, len(shards))
    html = page.render(config, work.phases, reports, dry=output is None)
    if output is not None:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in left)
        storage.write_bytes(storage.join(output, "curation", "left_out.jsonl"), "".join(lines).encode())
        storage.write_bytes(storage.join(output, "curation.html"), html.encode())
    gone = Counter(line["step"] for line in left if line["what"] == "record")
    counted = sum(1 for _ in records.iterate(records_uri, columns=("kind",), batch_size=4096))
    return {"records": counted, "left": {page.name_of(label): count for label, count in gone.items()}, "html": html}


def steps_of(config: Config) -> list[Step]:
    return [STEPS[step.kind](step) for step in config.steps]


def _work(config: Config, shards: list[str], state: str, output: str | None) -> Work:
    from omniloom.stages.curate import held_out
    from omniloom.stages.curate.phases import Work, phases

    steps, judged = steps_of(config), config.evaluation_sources
    first = last = None
    outside, texts = held_out.read_evaluation(config, shards)
    if judged or config.evaluation_sets:
        first = held_out.HeldOut(judged, outside, texts, refuses=True)
    if any(step.makes_content for step in steps):
        last = held_out.HeldOut(judged, outside, texts, refuses=False)
    return Work(phases(steps, first, last), state, output, frozenset(judged))


def _left(work: Work, shards: int) -> list[dict]:
    from omniloom.stages.curate.deciding import lines

    return [
        line
        for phase in work.phases
        for number in range(shards)
        for line in lines(phase.place(work.state, "left", f"{number:05d}.jsonl"))
    ]


def _each(work: Work, tasks: list[dict], num_workers: int | None) -> Iterator[tuple[int, dict]]:
    """(shard, report) of each task as it is done: by Ray Data, or here where other processes cannot see the data."""
    todo = []
    for task in tasks:  # what an earlier run did needs no worker
        marker = work.phases[task["phase"]].place(work.state, f"{task['shard']:05d}.json")
        if (report := storage.read_json(marker)) is not None:
            yield task["shard"], report
        else:
            todo.append(task)
    if not todo:
        return
    if any(storage.is_process_local(uri) for uri in (work.state, work.output or "", todo[0]["view"]["uri"])):
        yield from ((task["shard"], work(task)) for task in todo)
        return
    yield from _by_ray(work, todo, num_workers)


def _by_ray(work: Work, tasks: Iterable[dict], num_workers: int | None) -> Iterator[tuple[int, dict]]:
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    from omniloom.stages.base import RETRIES

    DataContext.get_current().enable_progress_bars = False

    def do(row: dict) -> dict:
        task = json.loads(row["task"])  # JSON on both ways: Arrow would force one type on what differs
        return {"shard": task["shard"], "report": json.dumps(work(task))}

    rows = [{"task": json.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    for row in dataset.map(do, compute=TaskPoolStrategy(num_workers), max_retries=RETRIES).iter_rows():
        yield int(row["shard"]), json.loads(row["report"])
