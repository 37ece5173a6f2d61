"""Cutting: a large item into pieces of which each gives about one shard.

How many rows make a shard is not to be seen from a file: lines may name pictures, or hold much that no record has. So
the first rows of the file are read, and it is cut by what these hold. What is taken from them is rounded, so that a
picture which changes a little moves no piece.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.kinds.base import SourceKind

_SAMPLE = 64  # rows
_AIM = 0.95  # of `shard_bytes`; what holds up to a fifth more than was expected is one shard all the same
_LARGE_ROW = 1 << 16  # bytes that a row is taken to have until one is read


def pieces(kind: SourceKind, item: dict, config: Config) -> Iterable[dict]:
    """The pieces of an item; one that cannot be looked into is one, and the worker that reads it says why."""
    if "reject" in item or type(kind).cut is SourceKind.cut:
        return [item]
    size, count = config.shard_bytes, config.shard_items
    try:
        first = next(kind.cut(item, size, min(count, max(1, size // _LARGE_ROW))), item)
        if "from" not in first:
            return [item]
        row, share = _measured(kind, item, config)
        count = max(1, min(count, int(_AIM * size / row))) if row else count
        found = kind.cut(item, max(1, int(_AIM * size / share)) if share else size, count)
        return [{**piece, "held": int(row * piece["rows"])} if row and "rows" in piece else piece for piece in found]
    except Exception:
        return [item]


def _measured(kind: SourceKind, item: dict, config: Config) -> tuple[float, float]:
    """About how many bytes of a shard a row takes, by the first ones, and a byte of the file; 0 where none tells."""
    from omniloom.stages.data.records import row_bytes
    from omniloom.stages.ingest.readers import Reader

    sample = next(kind.cut(item, max(1, min(_SAMPLE * _LARGE_ROW, item["size"] // 4)), _SAMPLE))
    rows = list(islice(Reader(config, kind.index).read(sample), _SAMPLE))
    held = sum(row_bytes(row) for row in rows if "code" not in row)
    if not held:
        return 0.0, 0.0
    row = _rounded(held / len(rows))
    count = sample.get("rows") or (len(rows) if len(rows) < _SAMPLE else 0)
    return row, row * count / max(1, sample["size"])


def _rounded(size: float) -> float:
    """Up to the next eighth of an octave."""
    return 2 ** (math.ceil(8 * math.log2(size)) / 8)
