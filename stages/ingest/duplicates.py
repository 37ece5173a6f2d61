"""Records whose id came before. Memory: some 50 bytes a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from omniloom.stages.data import records


def find_duplicates(shards: Sequence[str]) -> tuple[list[dict], list[dict]]:
    """{source, path, part, id, shard} of the records whose id came before, in the order of the shards; and {source,
    path, part, shard, captions} of those that came first and get captions of the records after them."""
    first = _first_of_id(shards)
    duplicates: list[dict] = []
    added: dict[int, list[str]] = {}
    again = np.flatnonzero(first != np.arange(len(first)))
    for number, row in _rows_at(shards, again, ("id", "source", "path", "part", "captions")):
        added.setdefault(int(first[number]), []).extend(row.pop("captions") or ())
        duplicates.append(row)
    changed = []
    stay = np.array(sorted(number for number, captions in added.items() if captions), np.int64)
    for number, row in _rows_at(shards, stay, ("source", "path", "part", "captions")):
        own = row.pop("captions") or []
        both = list(dict.fromkeys([*own, *added[number]]))
        if len(both) > len(own):
            changed.append({**row, "captions": both})
    return duplicates, changed


def _first_of_id(shards: Sequence[str]) -> np.ndarray:
    """int64 (records,): of each record, by its place among all, that of the first with its id."""
    ids = bytearray()
    for shard in shards:
        for row in records.iterate_shard(shard, columns=("id",), batch_size=4096):
            ids += bytes.fromhex(row["id"][:32])  # half of a sha256 tells as much
    halves = np.frombuffer(ids, np.uint64).reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of one id the first comes first
    new = np.ones(len(order), bool)
    new[1:] = (halves[order[1:]] != halves[order[:-1]]).any(1)
    first = np.empty(len(order), np.int64)
    first[order] = order[new][np.cumsum(new) - 1]
    return first


def _rows_at(shards: Sequence[str], places: np.ndarray, columns: Sequence[str]) -> Iterator[tuple[int, dict]]:
    """(place, row) of the records at these places, rising, among all; "shard" is the name of theirs."""
    start = 0
    for shard in shards if len(places) else ():
        stop = start + records.count(shard)
        wanted = set(places[np.searchsorted(places, start) : np.searchsorted(places, stop)].tolist())
        rows = records.iterate_shard(shard, columns=columns, batch_size=4096) if wanted else ()
        for number, row in enumerate(rows, start):
            if number in wanted:
                yield number, {**row, "shard": shard.rsplit("/", 1)[-1]}
        start = stop
