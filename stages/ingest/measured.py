"""How long ingest takes over a source on this machine: some of its items, evenly from its beginning to its end, are
really read and written as records. In: the config of ingest and the source's number. Out: seconds, and how much that
was.

Items come in pieces of a megabyte at most where their kind can be cut, so that a large file is not read whole; of a
source whose items cannot, one is read all the same. Whatever is settled over all records at the end is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from omniloom.stages.ingest import sources
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.groups import ingest_group

_PICKED = 512  # items at most; of more each second one is let go
_TOGETHER = 8  # items of a shard
_PIECE = 1 << 20


@dataclass(frozen=True)
class Read:
    """Of so many items and bytes of a source, how many records came, and the seconds that it took one CPU."""

    seconds: float
    items: int
    bytes: int
    records: int


def read_some(config: Config, index: int, folder: str, seconds: float) -> Read:
    """Until so many seconds are over; the shards come to lie in `folder`. The first group warms up, and counts only
    where it is all that there is."""
    own = config.model_copy(update={"sources": [config.sources[index]], "shard_bytes": _PIECE})
    found, began = Read(0.0, 0, 0, 0), time.perf_counter()
    for number, items in enumerate(_spread(_evenly(sources.pieces(own)))):
        start = time.perf_counter()
        reports = list(ingest_group({"index": number, "items": items}, own, folder, folder))
        now = time.perf_counter()
        before = found if number > 1 else Read(0.0, 0, 0, 0)
        found = Read(
            before.seconds + now - start,
            before.items + len(items),
            before.bytes + sum(item["size"] or 0 for item in items),
            before.records + sum(report["records"] for report in reports),
        )
        if now - began > seconds and number:
            break
    return found


def _evenly(items: Iterator[dict]) -> list[dict]:
    """At most `_PICKED` of them, from each part of the order as many."""
    picked: list[dict] = []
    step = 1
    for number, item in enumerate(items):
        if number % step:
            continue
        picked.append(item)
        if len(picked) > _PICKED:
            picked, step = picked[::2], step * 2
    return picked


def _spread(items: list[dict]) -> Iterator[list[dict]]:
    """Groups of them, each from all parts of the order, so that the first ones stand for all."""
    groups = -(-len(items) // _TOGETHER)
    for number in count():
        if number == groups:
            return
        yield items[number::groups]
