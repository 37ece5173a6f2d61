"""Cutting: a large item into pieces of which each gives about one shard.

How many rows make a shard is not to be seen from a file: lines may name pictures, or hold much that no record has, and
texts take less once they are compressed. So the first rows of the file are read and written to memory as a shard, and
it is cut by what that takes. What is taken from them is rounded, so that a picture which changes a little moves no
piece. A piece tells, beside what its kind says, how many bytes of a shard it is expected to take ("held"), and how many
a byte of rows takes ("packed").
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice

from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.kinds.base import SourceKind

_SAMPLE, _LARGE_SAMPLE = 64, 4096  # rows at least, and at most
_TELLING = 1 << 20  # bytes of rows that are read; a quarter of them tells how far rows are compressed
_AIM = 0.98  # of `shard_bytes`; what holds a little more than was expected is one shard all the same
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
        row, share, packed = _measured(kind, item, config)
        if not row:
            return list(kind.cut(item, size, count))
        count = max(1, min(count, int(_AIM * size / row)))
        found = kind.cut(item, max(1, int(_AIM * size / share)) if share else size, count)
        return [_told(piece, row, share, packed) for piece in found]
    except Exception:
        return [item]


def _told(piece: dict, row: float, share: float, packed: float) -> dict:
    held = row * piece["rows"] if "rows" in piece else share * piece["size"]
    return {**piece, **({"held": int(held)} if held else {}), **({"packed": packed} if packed < 1 else {})}


def _measured(kind: SourceKind, item: dict, config: Config) -> tuple[float, float, float]:
    """About how many bytes of a shard a row takes, by the first ones, a byte of the file (0 where none tells), and a
    byte of rows."""
    from omniloom.stages.data.records import row_bytes
    from omniloom.stages.ingest.readers import Reader

    sample = next(kind.cut(item, max(1, min(_SAMPLE * _LARGE_ROW, item["size"] // 4)), _LARGE_SAMPLE))
    rows: list[dict] = []
    good: list[dict] = []
    held = 0
    for row in islice(Reader(config, kind.index).read(sample), _LARGE_SAMPLE):
        rows.append(row)
        if "code" not in row:
            good.append({**row, "split": "train", "source": ""})
            held += row_bytes(row)
        if len(rows) >= _SAMPLE and held >= _TELLING:
            break
    else:
        row = {}
    if not held:
        return 0.0, 0.0, 1.0
    _, packed = packing(good)
    of_row = _rounded(held / len(rows)) * packed
    whole = not row and len(rows) < _LARGE_SAMPLE
    count = len(rows) if whole else sample.get("rows", 0)
    return of_row, of_row * count / max(1, sample["size"]), packed


def packing(rows: list[dict]) -> tuple[int, float]:
    """How many bytes these rows hold, and how many of a shard a byte of them takes, as far as they are enough to
    tell."""
    from omniloom.stages.data.records import packed_bytes, row_bytes

    held = sum(map(row_bytes, rows))
    return held, min(1.0, _rounded(packed_bytes(rows) / held)) if 4 * held >= _TELLING else 1.0


def _rounded(size: float) -> float:
    """Up to the next eighth of an octave."""
    return 2 ** (math.ceil(8 * math.log2(size)) / 8)
