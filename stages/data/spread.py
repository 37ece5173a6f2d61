"""Which held-out items are measured or shown: drawn by the seed, evenly over sources and labels.

In: a table with a column `id`, and the columns whose values part its rows, the outermost first. Out: row numbers in the
order of the draw, so that the first n of them are a draw of n.
A draw takes turns: over the values of the first column, and within each over those of the next, so that none has two
more than another as long as the other has rows left. A label that one row alone has is no class, and counts as none:
else a corpus with a name for each of its pictures would leave no turn to its classes. Who comes when is a function of
the seed, the ids and the values: files and their order have no say. Contents are not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


def spread(table: pa.Table, by: Sequence[str], seed: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Row numbers, int64 (N,), of the table or of those `rows` (int64) alone. A value may be null, which is one more
    value; without `by` the order is drawn by the seed alone."""
    columns = table.select(["id", *by])
    columns = columns if rows is None else columns.take(rows)
    turns = [np.zeros(len(columns), np.int64), *_turns(columns, by, seed)]
    place = _hashes((str(seed), value) for value in _values(columns, "id"))
    inner = turns[0]
    for turn in reversed(turns):
        order = np.lexsort((inner, place, turn))
        starts = np.flatnonzero(np.diff(turn[order], prepend=-1))
        place = np.empty(len(columns), np.int64)
        place[order] = np.arange(len(columns)) - np.repeat(starts, np.diff(starts, append=len(columns)))
        inner = turn
    chosen = np.argsort(place)
    return chosen if rows is None else np.asarray(rows)[chosen]


def _turns(columns: pa.Table, by: Sequence[str], seed: int) -> Iterator[np.ndarray]:
    """For each depth the group of each row by the values down to there, numbered in the order of their turns."""
    outer = [""] * len(columns)
    for name in by:
        values = list(_values(columns, name))
        if name == "label":
            times = Counter(values)
            values = [value if times[value] > 1 else None for value in values]
        outer = [f"{group}\0{value!r}" for group, value in zip(outer, values, strict=True)]
        yield np.unique(_hashes((str(seed), group) for group in outer), return_inverse=True)[1]


def _values(columns: pa.Table, name: str) -> Iterator:
    for chunk in columns[name].iterchunks():
        yield from chunk.to_pylist()


def _hashes(parts: Iterator[tuple[str, ...]]) -> np.ndarray:
    return np.fromiter(
        (int.from_bytes(blake2b("\0".join(part).encode(), digest_size=8).digest(), "big") for part in parts), np.uint64
    )
