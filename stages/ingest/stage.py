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

What is held out is unseen: see `stages.ingest.splits`.

Files, and pieces of large ones, are grouped in a fixed order, and Ray works on the groups side by side; a killed
run goes on with the groups that are not done: see `stages.ingest.groups`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.infra.packed import Packed
from omniloom.infra.secrets import redact
from omniloom.stages.ingest import sources
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.groups import done, grouped, ingest_group, keys_uri, marker_name

if TYPE_CHECKING:
    from omniloom.stages.base import StageContext

VERSION = 6
BUILDS_ON = ("sources", "max_synthetic_fraction")

__all__ = ["VERSION", "Config", "ingest_group", "listing", "run", "summary"]


def listing(config: Config) -> Sequence[dict]:
    """Facts about the sources' files, which stand in for inputs; InputError for a missing or an empty
    source.
    """
    return sources.listing(config)


def run(context: StageContext) -> dict:
    """Ingest everything. The returned metrics count items, kinds, splits and reasons; InputError if nothing
    is left.
    """
    config: Config = context.config
    notes: Counter = Counter()
    groups = Packed(grouped(sources.pieces(config, notes), config), together=1)
    if not groups:
        raise InputError("empty corpus: the sources' manifests name no item", field="sources")
    output, state = context.output, context.state
    counts, total = _Counts(), _files(groups)
    for reports in _reports(groups, config, output, state):
        counts.add(reports)
        context.progress(counts.files, total, "files")
    first = _join_rejects(output, state)
    duplicates, splits = settle(output, state, config.splits.model_dump())
    metrics = _metrics(output, counts, len(duplicates)) | splits | notes
    if not metrics["records"]:
        reasons = ", ".join(f"{code} {count}" for code, count in counts.codes.most_common(5))
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


class _Counts:
    """Sums over the reports of groups."""

    def __init__(self) -> None:
        self.codes: Counter = Counter()
        self._whole, self._rejected = 0, 0
        self._cut: dict[tuple, bool] = {}  # files read in pieces: whether a record came of one

    def add(self, reports: list[dict]) -> None:
        for report in reports:
            self.codes.update(report["codes"])
            self._whole += report["files"]
            self._rejected += report["files_rejected"]
            for *file, usable in report["pieces"]:
                self._cut[tuple(file)] = usable or self._cut.get(tuple(file), False)

    @property
    def files(self) -> int:
        return self._whole + len(self._cut)

    @property
    def files_rejected(self) -> int:
        return self._rejected + sum(not usable for usable in self._cut.values())


def _join_rejects(output: str, state: str) -> dict | None:
    """Write the rejects of all shards, in order, to one file; the first of them."""
    first = None
    with storage.writing(storage.join(output, "rejects", "rejects.jsonl")) as file:
        for name in storage.list_files(storage.join(state, "rejects")):
            for reject in _read_jsonl(storage.join(state, "rejects", name)):
                reject["message"] = redact(reject["message"])
                first = first or reject
                file.write(_jsonl([reject]))
    return first


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


def settle(output: str, state: str, fractions: dict[str, float]) -> tuple[list[dict], dict[str, int]]:
    """Drop every record whose id came before, in the order of the shards, and bring the others to their splits; returns
    what was dropped, and counts of `stages.ingest.splits`.

    The record that stays gets the captions of those that go. What is to change is written down before any shard is
    touched: a killed pass is repeated from the same lists. A shard is written again once at most.
    """
    from omniloom.stages.data import records
    from omniloom.stages.ingest import splits
    from omniloom.stages.ingest.duplicates import find_duplicates

    plan = storage.join(output, "duplicates", "duplicates.jsonl")
    captions_plan = storage.join(output, "duplicates", "captions.jsonl")
    if not storage.exists(plan):
        duplicates, captions = find_duplicates(records.shards(output))
        storage.write_bytes(captions_plan, _jsonl(captions))
        storage.write_bytes(plan, _jsonl(duplicates))
    duplicates, captions = _read_jsonl(plan), _read_jsonl(captions_plan)
    dropped: dict[str, set] = {}
    for row in duplicates:
        dropped.setdefault(row["shard"], set()).add(records.key_of(row))
    captioned: dict[str, dict] = {}
    for row in captions:
        captioned.setdefault(row["shard"], {})[records.key_of(row)] = row["captions"]
    splits_plan = storage.join(state, "splits.json")
    if (assigned := splits.read_plan(splits_plan)) is None:
        names = [uri.rsplit("/", 1)[-1] for uri in records.shards(output)]
        assigned = splits.assign({name: keys_uri(state, name) for name in names}, dropped, fractions)
        splits.write_plan(splits_plan, *assigned)
    moved, counts = assigned
    for name in sorted({*dropped, *captioned, *moved}):
        records.drop_rows(
            storage.join(output, "records", name),
            dropped.get(name, set()),
            captioned.get(name, {}),
            moved.get(name, {}),
        )
    return duplicates, counts


def _reports(groups: Iterable[dict], config: Config, output: str, state: str) -> Iterator[list[dict]]:
    """The reports of each group as it is done: by Ray tasks, or here where other processes cannot see the data."""
    known = storage.list_files(storage.join(state, "groups"))
    for group in groups:  # an earlier run's shards need no worker
        if marker_name(group) in known:
            yield done(state, group) or []
    left = (group for group in groups if marker_name(group) not in known)
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
    settings = config.model_dump_json(by_alias=True)
    running: list = []
    for group in groups:
        running.append(task.remote(group, settings, output, state))
        while len(running) >= (config.num_workers or 2 * int(ray.cluster_resources().get("CPU", 1))):
            ready, running = ray.wait(running)
            yield from ray.get(ready)
    while running:
        ready, running = ray.wait(running)
        yield from ray.get(ready)


def _work(group: dict, settings: str, output: str, state: str) -> list[dict]:
    return list(ingest_group(group, Config.model_validate_json(settings), output, state))


def _metrics(output: str, read: _Counts, duplicates: int) -> dict:
    from omniloom.stages.data import records

    counts, rejects = records.counts(output), read.codes.total()
    return {
        "files": read.files,
        "items": counts["records"] + rejects + duplicates,
        "records": counts["records"],
        "rejects": rejects,
        "duplicates": duplicates,
        "files_rejected": read.files_rejected,
        **counts,
        **{f"rejects_{code}": count for code, count in sorted(read.codes.items())},
    }


def _files(groups: Iterable[dict]) -> int:
    """How many files, or other items, there are to read."""
    whole, cut = 0, set()
    for item in (item for group in groups for item in group["items"]):
        if "from" in item:
            cut.add((item["source"], item["path"]))
        else:
            whole += 1
    return whole + len(cut)


def _read_jsonl(uri: str) -> list[dict]:
    # Lines end with a line feed alone: a path may hold other ends.
    return [json.loads(line) for line in storage.read_bytes(uri).split(b"\n") if line]


def _jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
