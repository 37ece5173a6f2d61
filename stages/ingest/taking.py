"""Taking over: the shards of an earlier artifact that still hold records of this corpus, without reading the sources.

In: the items of this run (`stages.ingest.known`). Out: in the output those shards with their keys and rejects, shared
with the earlier artifact as far as the store can (`storage.share_file`). What such a shard holds of items that are gone
is dropped by `stages.data.changes`; where that is more than `_MOST_GONE` of its records, the shard is written anew
without it, and where it is all of them, there is no such shard.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from omniloom.infra import storage
from omniloom.infra.artifacts import RESUME, TAKEN_OVER, Artifact
from omniloom.stages.data import records
from omniloom.stages.ingest import keys
from omniloom.stages.ingest.in_order import Order
from omniloom.stages.ingest.known import Known

_MOST_GONE = 0.25


def take_over(known: Known, order: Order, output: str, state: str) -> int:
    """How many records were taken over; a pass that was killed is made again."""
    if known.artifact is None:
        return 0
    was = np.bincount(known.group) if len(known.group) else np.empty(0, int)
    noted: dict[str, dict] = {}
    taken = 0
    for group, of_kind in _files(known.artifact):
        if group not in order.groups:
            continue
        whole = order.count(group) == was[group]
        for name, entries in of_kind.items():
            taken += _take(known.artifact, name, entries, None if whole else order, group, output, noted)
    storage.write_json(storage.join(state, TAKEN_OVER), noted)
    return taken


def _files(artifact: Artifact) -> Iterator[tuple[int, dict[str, list[dict]]]]:
    """By group, by the name of the shard: its files."""
    found: dict[int, dict[str, list[dict]]] = {}
    for entry in artifact.manifest["files"]:
        folder, _, name = entry["path"].rpartition("/")
        if folder in ("records", f"{RESUME}keys", f"{RESUME}rejects"):
            name = name.removesuffix(".jsonl")
            found.setdefault(keys.group_of(name), {}).setdefault(name, []).append(entry)
    yield from found.items()


def _take(
    artifact: Artifact, name: str, entries: list[dict], order: Order | None, group: int, output: str, noted: dict
) -> int:
    """One shard; how many of its records are left. `order` is there where some of the group's items are gone."""
    shard, own = storage.join("records", name), storage.join(f"{RESUME}keys", name)
    gone: set[int] = set()
    count = 0
    if any(entry["path"] == own for entry in entries):
        items = keys.read(artifact.uri, name, ["item"])["item"].to_numpy() if order else None
        if order and items is not None:
            gone = set(np.flatnonzero(order.places(group, items) < 0).tolist())
        count = len(items) if items is not None else keys.count(artifact.uri, name)
    anew = {shard, own} if gone and len(gone) > _MOST_GONE * count else set()
    for entry in entries:
        if entry["path"] not in anew:
            storage.share_file(artifact.file(entry["path"]), storage.join(output, entry["path"]))
            noted[entry["path"]] = {"bytes": entry["bytes"], "sha256": entry["sha256"]}
    if anew and len(gone) < count:
        records.rewrite_without(artifact.file(shard), storage.join(output, shard), gone)
        kept = [row for row in range(count) if row not in gone]
        keys.write_table(output, name, keys.read(artifact.uri, name).take(pa.array(kept)))
    return count - len(gone)
