"""Taking over: the shards of an earlier artifact that still hold records of this corpus, without reading the sources.

In: the items of this run (`stages.ingest.increments.known`). Out: in the output those shards with their keys and
rejects, shared with the earlier artifact as far as the store can (`storage.share_file`). What such a shard holds of
items that are gone is dropped by `stages.data.changes`; where that is more than `_MOST_GONE` of its records, the shard
is written anew without it, and where it is all of them, there is no such shard.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from omniloom.infra import storage
from omniloom.infra.artifacts import RESUME, TAKEN_OVER, Artifact
from omniloom.stages.data import records
from omniloom.stages.ingest.increments.in_order import Order
from omniloom.stages.ingest.increments.known import Known
from omniloom.stages.ingest.splitting import keys

_MOST_GONE = 0.25


def take_over(known: Known, order: Order, output: str, state: str) -> set[str]:
    """The names of the shards that are taken over; a pass that was killed is made again."""
    names: set[str] = set()
    if known.artifact is None:
        return names
    was = np.bincount(known.group) if len(known.group) else np.empty(0, int)
    noted: dict[str, dict] = {}
    for group, shards in _files(known.artifact).items():
        if group in order.groups:
            whole = order.count(group) == was[group]
            for name, entries in shards.items():
                if _take(known.artifact, name, entries, None if whole else order, output, noted):
                    names.add(name)
    storage.share_files(known.artifact.uri, output, noted)
    storage.write_json(storage.join(state, TAKEN_OVER), noted)
    return names


def tidy(output: str, names: set[str]) -> None:
    """Remove what an interrupted run of another listing has left in the output."""
    for folder in ("records", f"{RESUME}keys", f"{RESUME}rejects"):
        for path in storage.list_files(storage.join(output, folder)):
            if path.removesuffix(".jsonl") not in names:
                storage.remove(storage.join(output, folder, path))


def _files(artifact: Artifact) -> dict[int, dict[str, list[dict]]]:
    """By group, by the name of the shard: its files."""
    found: dict[int, dict[str, list[dict]]] = {}
    for entry in artifact.manifest["files"]:
        folder, _, name = entry["path"].rpartition("/")
        if folder in ("records", f"{RESUME}keys", f"{RESUME}rejects"):
            name = name.removesuffix(".jsonl")
            found.setdefault(records.group_of(name), {}).setdefault(name, []).append(entry)
    return found


def _take(
    artifact: Artifact, name: str, entries: list[dict], order: Order | None, output: str, noted: dict[str, dict]
) -> bool:
    """One shard; whether any of it is left. `order` is there where some of the group's items are gone."""
    shard, own = storage.join("records", name), storage.join(f"{RESUME}keys", name)
    anew: tuple[str, ...] = ()
    if order and any(entry["path"] == own for entry in entries):
        items = keys.read(artifact.uri, name, ["item"])["item"].to_numpy()
        kept = np.flatnonzero(order.places(records.group_of(name), items) >= 0)
        if len(kept) < (1 - _MOST_GONE) * len(items):
            anew = shard, own
            if len(kept):
                gone = set(range(len(items))) - set(kept.tolist())
                records.rewrite_without(artifact.file(shard), storage.join(output, shard), gone)
                keys.write_table(output, name, keys.read(artifact.uri, name).take(pa.array(kept)))
    for entry in entries:
        if entry["path"] not in anew:
            noted[entry["path"]] = {"bytes": entry["bytes"], "sha256": entry["sha256"]}
    return True
