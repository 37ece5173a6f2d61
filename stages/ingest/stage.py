"""Ingest: raw folders into records. The first stage; what the others learn from passes through here.

In: the config's sources (any fsspec URI). Out, below the artifact:
    records/shard-000000-0000.parquet   records (see `stages.data.records`), in the order of the sources
    rejects/rejects.jsonl         {source, path, part, code, message} of every item that cannot be used
    duplicates/duplicates.jsonl   {source, path, part, id, shard} of every item whose content came before
    duplicates/captions.jsonl     {source, path, part, shard, captions} of every record that has its duplicates' too

Accounting. An item is one media file, one chunk of a text file, one line of a JSONL file, one document, one row of a
manifest that names nothing usable, or one value of a row that cannot be used (a caption that is no text; what it is
about stays without it); `items` = `records` + `rejects` + `duplicates`. `files` counts the files that the sources hold
or name and the rows of manifests that name nothing usable, so it equals `items` where every file is one item, as in
folders of images and videos.

No item stops the rest: whatever reading one raises becomes its reject.

What is held out is unseen: see `stages.ingest.splitting.splits`.

Files, and pieces of large ones, are grouped in a fixed order, and Ray works on the groups side by side; a killed
run goes on with the groups that are not done: see `stages.ingest.groups`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from omniloom.infra import storage, worker_log
from omniloom.infra.artifacts import WRITTEN
from omniloom.infra.errors import InputError
from omniloom.infra.fields import marks
from omniloom.infra.packed import Packed
from omniloom.infra.secrets import redact
from omniloom.stages.ingest import sources
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.groups import done, grouped, ingest_group, marker_name

if TYPE_CHECKING:
    from omniloom.stages.base import StageContext
    from omniloom.stages.ingest.increments.known import Items
    from omniloom.stages.ingest.splitting.keys import Corpus
    from omniloom.stages.ingest.splitting.settling import Settled

VERSION = 13
BUILDS_ON = ("sources", "max_synthetic_fraction")

__all__ = ["VERSION", "Config", "ingest_group", "listing", "run", "summary"]


def listing(config: Config) -> Sequence[dict]:
    """Facts about the sources' files, which stand in for inputs; InputError for a missing or an empty
    source.
    """
    return sources.listing(config)


def run(context: StageContext) -> dict:
    """Ingest what of the sources the predecessor has not, and take over the rest. The returned metrics count items,
    kinds, splits and reasons; InputError if nothing is left.
    """
    from omniloom.stages.data import records
    from omniloom.stages.ingest.increments.known import Files, Items, Known
    from omniloom.stages.ingest.increments.taking import take_over, tidy
    from omniloom.stages.ingest.splitting.keys import Corpus
    from omniloom.stages.ingest.splitting.settling import settle

    config: Config = context.config
    notes: Counter = Counter()
    output, state = context.output, context.state
    known, files = Known(context.predecessor), Files()
    items = Items(known, files, [_identity(config, index) for index in range(len(config.sources))])
    unread = items.unread(sources.pieces(config, notes, files.add))
    groups = Packed(map(items.placed, grouped(unread, config, known.groups)), together=1)
    if not items.count:
        raise InputError("empty corpus: the sources' manifests name no item", field="sources")
    order = items.order()
    names = take_over(known, order, output, state)
    done_files = items.files - items.unread_files
    written: dict[str, dict] = {}
    for reports in _reports(groups, config, output, state):
        for report in reports:
            names.add(report["name"])
            done_files += report["files"]
            written |= report["written"]
            for item, source, paths in report["asked"]:
                items.asked(records.group_of(report["name"]), item, source, paths)
        context.progress(min(done_files, items.files), items.files, "files")
    storage.write_json(storage.join(state, WRITTEN), written)
    tidy(output, names)
    corpus = Corpus(output, order)
    codes, first = _join_rejects(corpus)
    settled = settle(corpus, items.count, config.splits.model_dump(), context.predecessor)
    items.write(output, settled)
    metrics = _metrics(items, settled, codes) | notes
    if not metrics["records"]:
        reasons = ", ".join(f"{code} {count}" for code, count in codes.most_common(5))
        raise InputError(
            f"no record came out of {metrics['files']} files; rejects: {reasons}"
            + (f"; the first: {first['path']}: {first['message']}" if first else ""),
            field="sources",
        )
    if metrics["synthetic_fraction"] > config.max_synthetic_fraction:
        raise InputError(
            f"{metrics['synthetic']} of {metrics['records']} records were made by a model of this project "
            f"({metrics['synthetic_fraction']:.1%}, allowed {config.max_synthetic_fraction:.1%})",
            field="max_synthetic_fraction",
        )
    return metrics


def _identity(config: Config, index: int) -> str:
    """What stands for a source, wherever it lies and whatever its number is: its name and its options."""
    source = config.sources[index]
    unset = {name for name, mark in marks(source).items() if mark.get("later") and getattr(source, name) is None}
    own = source.model_dump_json(exclude={"uri", "name", *unset}, by_alias=True)
    return f"{config.source_name(index)} {own}"


def _join_rejects(corpus: Corpus) -> tuple[Counter, dict | None]:
    """Write the rejects, in order, to one file for people; counts by reason, and the first of them."""
    codes: Counter = Counter()
    first = None
    with storage.writing(storage.join(corpus.output, "rejects", "rejects.jsonl")) as file:
        for reject in corpus.rejects():
            told = {name: reject[name] for name in ("source", "path", "part", "code")}
            told["message"] = redact(reject["message"])
            codes[told["code"]] += 1
            first = first or told
            file.write((json.dumps(told, ensure_ascii=False) + "\n").encode())
    return codes, first


def summary(metrics: dict) -> str:
    """What a person is told when the stage is done: counts, the share of pictures without a caption, the reasons of
    most rejects, and what lies in the sources unread.
    """
    told = [f"{name} {metrics[name]:,}" for name in ("files", "items", "records", "rejects", "duplicates")]
    codes = Counter(
        {name.removeprefix("rejects_"): count for name, count in metrics.items() if name.startswith("rejects_")}
    )
    if codes:
        told[3] += f" ({', '.join(f'{code} {count:,}' for code, count in codes.most_common(3))}"
        told[3] += f" and {len(codes) - 3} reasons more)" if len(codes) > 3 else ")"
    if pictures := metrics["records_image"] + metrics["records_video"]:
        told.append(f"uncaptioned {metrics['uncaptioned']:,} of {pictures:,}")
    notes = {
        "metadata_captions": "captions of {} pictures from metadata.jsonl or metadata.csv",
        "metadata_unread": "{} metadata files name no files and were not read",
        "sidecars_unread": "{} texts beside pictures were not read (captions: {{from: sidecar}} reads them)",
        "multipage": "of {} pictures with several pages or frames the first is taken",
    }
    return "; ".join(
        [", ".join(told), *(text.format(f"{metrics[name]:,}") for name, text in notes.items() if metrics.get(name))]
    )


def _reports(groups: Iterable[dict], config: Config, output: str, state: str) -> Iterator[list[dict]]:
    """The reports of each group as it is done: by Ray tasks, or here where other processes cannot see the data."""
    begun = storage.list_files(storage.join(state, "groups"))
    finished: set[int] = set()
    for group in groups if begun else ():  # an earlier run's shards need no worker
        if marker_name(group) in begun and (reports := done(state, group)) is not None:
            finished.add(group["index"])
            yield reports
    left = (group for group in groups if group["index"] not in finished)
    if any(storage.is_process_local(uri) for uri in (output, *(source.uri for source in config.sources))):
        for group in left:
            yield list(ingest_group(group, config, output, state))
        return
    yield from _by_ray(left, config, output, state)


def _by_ray(groups: Iterable[dict], config: Config, output: str, state: str) -> Iterator[list[dict]]:
    """At any time as many groups are with Ray as workers may run, or twice as many as there are CPUs, so that a cluster
    which grows sees that there is work; the driver holds none before or after."""
    import ray

    from omniloom.stages.base import RETRIES

    task = ray.remote(num_cpus=1, max_retries=RETRIES, scheduling_strategy="SPREAD")(_work)
    settings, logs = config.model_dump_json(by_alias=True), worker_log.folder()
    running: list = []
    for group in groups:
        running.append(task.remote(group, settings, output, state, logs))
        while len(running) >= (config.num_workers or 2 * int(ray.cluster_resources().get("CPU", 1))):
            ready, running = ray.wait(running)
            yield from ray.get(ready)
    while running:
        ready, running = ray.wait(running)
        yield from ray.get(ready)


def _work(group: dict, settings: str, output: str, state: str, logs: str | None) -> list[dict]:
    with worker_log.kept(logs, worker_log.name_of_process()):
        worker_log.write(f"group {group['index']}")
        return list(ingest_group(group, Config.model_validate_json(settings), output, state))


def _metrics(items: Items, settled: Settled, codes: Counter) -> dict:
    counts, rejects = settled.counts, codes.total()
    return {
        "files": items.files,
        "items": counts["records"] + rejects + settled.duplicates,
        "records": counts["records"],
        "rejects": rejects,
        "duplicates": settled.duplicates,
        "files_rejected": items.files_without(settled.records),
        **counts,
        **{f"rejects_{code}": count for code, count in sorted(codes.items())},
        "files_read": items.unread_files,
        "bytes_read": items.unread_bytes,
    }
