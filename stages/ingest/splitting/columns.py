"""Columns of keys as arrays of numpy, without an object a row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def digits(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The first 32 hex digits of texts that each have as many, uint64 (n, 2): they rise as the texts do."""
    array = whole(column)
    starts = _offsets(array)[:-1]
    held = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    texts = held[starts[:, None] + np.arange(32)] if len(starts) else np.empty((0, 32), np.uint8)
    nibbles = (texts & 15) + 9 * (texts >> 6)
    return (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).view(">u8").astype(np.uint64)


def fixed(array: pa.BinaryArray) -> np.ndarray:
    """uint8 (n, width) of binary values of one width, none of them null."""
    offsets = _offsets(array)
    held = np.frombuffer(array.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    return held.reshape(len(array), -1) if len(array) else held.reshape(0, 0)


def _offsets(array: pa.Array) -> np.ndarray:
    if not len(array):
        return np.zeros(1, np.int32)
    return np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 (n, 2) of the same: another one for another row, also where several are added up."""
    first, second = values.T
    found = np.stack([first ^ second >> np.uint64(31), second ^ first << np.uint64(17)], axis=1)
    for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
        found *= np.uint64(factor)
        found ^= found >> np.uint64(32)
    return found


def numbered(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of uint64 (n, 2): the number of each row's value, in the order in which they first come, and the row where each
    first does."""
    order = np.lexsort((values[:, 1], values[:, 0]))  # stable: equal ones stay in order
    ranked = values[order]
    new = np.ones(len(values), bool)
    new[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    firsts = order[new]
    rank = np.empty(len(firsts), np.int64)
    by_first = np.argsort(firsts, kind="stable")
    rank[by_first] = np.arange(len(firsts))
    numbers = np.empty(len(values), np.int64)
    numbers[order] = rank[np.cumsum(new) - 1]
    return numbers, firsts[by_first]


def united(count: int, pairs: np.ndarray) -> np.ndarray:
    """int64 (count,): of each of 0..count-1 the least of those that it is tied to by pairs, int64 (n, 2), directly or
    through others."""
    roots = np.arange(count)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    while len(pairs):
        first, second = roots[pairs[:, 0]], roots[pairs[:, 1]]
        apart = first != second
        pairs, first, second = pairs[apart], first[apart], second[apart]
        np.minimum.at(roots, np.maximum(first, second), np.minimum(first, second))
        while (further := roots[roots] != roots).any():
            roots[further] = roots[roots[further]]
    return roots
