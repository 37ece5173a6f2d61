"""Ingest: raw folders into records. The first stage; what the others learn from passes through here.

In: the config's sources (any fsspec URI). Out, below the artifact:
    records/shard-00000.parquet   records (see `stages.data.records`), in the order of the sources
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

Files are grouped in a fixed order, one group gives one shard, and Ray Data works on the groups side by side.
A group that is done is written down in the stage's state, so that a killed run goes on after its last shard.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact
from omniloom.stages.ingest import sources
from omniloom.stages.ingest.config import Config

if TYPE_CHECKING:
    from omniloom.stages.base import StageContext

VERSION = 5
BUILDS_ON = ("sources", "max_synthetic_fraction")

__all__ = ["VERSION", "Config", "ingest_group", "listing", "run", "summary"]


def listing(config: Config) -> list[dict]:
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
    groups = group_items(sources.items(config, notes), config)
    if not groups:
        raise InputError("empty corpus: the sources' manifests name no item", field="sources")
    output, state = context.output, context.state
    done = {}
    for index, report in _reports(groups, config, output, state):
        done[index] = report
        context.progress(sum(r["files"] for r in done.values()), sum(len(g["items"]) for g in groups), "files")
    reports = [done[index] for index in sorted(done)]
    rejects = [{**reject, "message": redact(reject["message"])} for report in reports for reject in report["rejects"]]
    storage.write_bytes(storage.join(output, "rejects", "rejects.jsonl"), _jsonl(rejects))
    duplicates, counts = settle(output, state, config.splits.model_dump())
    metrics = _metrics(output, reports, rejects, duplicates) | counts | notes
    if not metrics["records"]:
        reasons = ", ".join(f"{code} {count}" for code, count in Counter(r["code"] for r in rejects).most_common(5))
        first = f"; the first: {rejects[0]['path']}: {rejects[0]['message']}" if rejects else ""
        raise InputError(
            f"no record came out of {metrics['files']} files; rejects: {reasons}{first}",
            field="sources",
        )
    if metrics["synthetic_fraction"] > config.max_synthetic_fraction:
        raise InputError(
            f"{metrics['synthetic']} of {metrics['records']} records were made by a model of this project "
            f"({metrics['synthetic_fraction']:.1%}, allowed {config.max_synthetic_fraction:.1%})",
            field="max_synthetic_fraction",
        )
    return metrics


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


def group_items(items: list[dict], config: Config) -> list[dict]:
    """[{"index", "items"}]: items in order, cut where a group reaches `shard_items` or `shard_bytes`."""
    groups: list[list[dict]] = []
    current: list[dict] = []
    size = 0
    for item in items:
        if current and (len(current) >= config.shard_items or size + item["size"] > config.shard_bytes):
            groups.append(current)
            current, size = [], 0
        current.append(item)
        size += item["size"]
    groups += [current] if current else []
    return [{"index": index, "items": group} for index, group in enumerate(groups)]


def ingest_group(group: dict, config: Config, output: str, state: str) -> dict:
    """Read one group's items and write its shard; a group that is done already is not read again.

    Returns {"files", "records", "rejects": [...], "files_rejected"}; written to `state` after the shard.
    """
    from omniloom.stages.data import records
    from omniloom.stages.ingest import splits
    from omniloom.stages.ingest.readers import Reader

    if (report := storage.read_json(_marker(state, group))) is not None:
        return report
    fractions = config.splits.model_dump()
    readers: dict[int, Reader] = {}
    rows, rejects, files_rejected = [], [], 0
    for item in group["items"]:
        index = item["source"]
        name = config.source_name(index)
        reader = readers.get(index) or readers.setdefault(index, Reader(config, index))
        usable = False
        for row in reader.read(item):
            if "code" in row:
                rejects.append({"source": name, **row})
            else:
                usable = True
                row = {**row, "source": name}
                rows.append({**row, "split": splits.own_split(row, fractions)})
        files_rejected += not usable
    rows, broken = records.writable(rows)
    rejects += broken
    splits.write_keys(_keys(state, group["index"]), rows)
    records.write_shard(storage.join(output, records.shard_name(group["index"])), rows)
    report = {
        "files": len(group["items"]),
        "records": len(rows),
        "rejects": rejects,
        "files_rejected": files_rejected,
    }
    storage.write_json(_marker(state, group), report)
    return report


def settle(output: str, state: str, fractions: dict[str, float]) -> tuple[list[dict], dict[str, int]]:
    """Drop every record whose id came before, in the order of the shards, and bring the others to their splits; returns
    what was dropped, and counts of `stages.ingest.splits`.

    The record that stays gets the captions of those that go. What is to change is written down before any shard is
    touched: a killed pass is repeated from the same lists. A shard is written again once at most.
    """
    from omniloom.stages.data import records
    from omniloom.stages.ingest import splits

    plan = storage.join(output, "duplicates", "duplicates.jsonl")
    captions_plan = storage.join(output, "duplicates", "captions.jsonl")
    if not storage.exists(plan):
        duplicates, captions = _find_duplicates(records.shards(output))
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
        assigned = splits.assign({name: _keys(state, number) for number, name in enumerate(names)}, dropped, fractions)
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


def _keys(state: str, index: int) -> str:
    return storage.join(state, "keys", f"{index:05d}.parquet")


def _find_duplicates(shards: list[str]) -> tuple[list[dict], list[dict]]:
    """Rows whose id came before; and those that came first and get captions of the rows after them."""
    from omniloom.stages.data import records

    duplicates: list[dict] = []
    seen: set[bytes] = set()
    added: dict[bytes, list[str]] = {}
    for shard in shards:
        for row in records.iterate_shard(shard, columns=("id", "source", "path", "part", "captions"), batch_size=4096):
            captions, key = row.pop("captions"), bytes.fromhex(row["id"])
            if key in seen:
                duplicates.append({**row, "shard": shard.rsplit("/", 1)[-1]})
                added.setdefault(key, []).extend(captions or ())
            seen.add(key)
    return duplicates, _merged(shards, {key: captions for key, captions in added.items() if captions})


def _merged(shards: list[str], added: dict[bytes, list[str]]) -> list[dict]:
    """{source, path, part, shard, captions} of the first record of each id in `added` that says something new of it."""
    from omniloom.stages.data import records

    changed = []
    for shard in shards if added else ():
        for row in records.iterate_shard(shard, columns=("id", "source", "path", "part", "captions"), batch_size=4096):
            own = row.pop("captions") or []
            both = list(dict.fromkeys([*own, *added.pop(bytes.fromhex(row.pop("id")), ())]))
            if len(both) > len(own):
                changed.append({**row, "shard": shard.rsplit("/", 1)[-1], "captions": both})
    return changed


def _reports(groups: list[dict], config: Config, output: str, state: str) -> Iterator[tuple[int, dict]]:
    """(index, report) of each group as it is done: by Ray Data, or here where other processes cannot see
    the data.
    """
    left = []
    for group in groups:  # an earlier run's shards need no worker
        if (report := storage.read_json(_marker(state, group))) is not None:
            yield group["index"], report
        else:
            left.append(group)
    if not left:
        return
    uris = [output, *(source.uri for source in config.sources)]
    if any(storage.is_process_local(uri) for uri in uris):
        for group in left:
            yield group["index"], ingest_group(group, config, output, state)
        return
    import ray
    from ray.data import DataContext, TaskPoolStrategy

    from omniloom.stages.base import RETRIES

    DataContext.get_current().enable_progress_bars = False
    settings = config.model_dump_json(by_alias=True)

    def work(row: dict) -> dict:
        # JSON on both ways: Arrow would force one type on fields that differ between items.
        group = json.loads(row["group"])
        report = ingest_group(group, Config.model_validate_json(settings), output, state)
        return {"index": group["index"], "report": json.dumps(report)}

    dataset = ray.data.from_items([{"group": json.dumps(group)} for group in left], override_num_blocks=len(left))
    for row in dataset.map(work, compute=TaskPoolStrategy(config.num_workers), max_retries=RETRIES).iter_rows():
        yield int(row["index"]), json.loads(row["report"])


def _marker(state: str, group: dict) -> str:
    return storage.join(state, "shards", f"{group['index']:05d}.json")


def _metrics(output: str, reports: list[dict], rejects: list[dict], duplicates: list[dict]) -> dict:
    from omniloom.stages.data import records

    counts = records.counts(output)
    return {
        "files": sum(report["files"] for report in reports),
        "items": counts["records"] + len(rejects) + len(duplicates),
        "records": counts["records"],
        "rejects": len(rejects),
        "duplicates": len(duplicates),
        "files_rejected": sum(report["files_rejected"] for report in reports),
        **counts,
        **{f"rejects_{code}": count for code, count in sorted(Counter(r["code"] for r in rejects).items())},
    }


def _read_jsonl(uri: str) -> list[dict]:
    # Lines end with a line feed alone: a path may hold other ends.
    return [json.loads(line) for line in storage.read_bytes(uri).split(b"\n") if line]


def _jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
