"""Columns of keys as arrays of numpy, without an object a row.

Of millions of rows only few have anything in common. So what is equal is looked for in two steps: values of 32 or 64
bits are sorted, a part of them at a time and without the rows that they are of; then the rows that have one of the
values that came twice are looked up in a table that fits the processor's cache, and they alone are put in order. Time
is linear in the rows, but for the sorting of `_TOGETHER` at once.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_TOGETHER = 1 << 24  # values that are sorted at once, about
_BLOCK = 1 << 18  # rows that are worked on at once, so that what is made on the way stays in the cache
_LEAST_BITS, _MOST_BITS = 12, 22  # of the table's places


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def digits(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The first 32 hex digits of texts that each have as many, uint64 (n, 2): they rise as the texts do."""
    array = whole(column)
    starts = _offsets(array)[:-1]
    held = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    found = np.empty((len(starts), 2), np.uint64)
    for at in range(0, len(starts), _BLOCK // 16):
        texts = held[starts[at : at + _BLOCK // 16, None] + np.arange(32)]
        nibbles = (texts & 15) + 9 * (texts >> 6)
        found[at : at + _BLOCK // 16] = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).view(">u8")
    return found


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


def indices(count: int) -> type:
    """The type of rows of an array of so many."""
    return np.int32 if count < 1 << 31 else np.int64


def ordered(values: np.ndarray) -> bool:
    """Whether they rise, or stay."""
    return all(
        (values[at + 1 : at + 1 + _BLOCK] >= values[at : at + _BLOCK][: len(values) - at - 1]).all()
        for at in range(0, len(values), _BLOCK)
    )


# ---- what is equal ----


def having(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The rows, rising, that have one of the wanted keys; uint32 or uint64, both."""
    wanted = np.sort(wanted)
    wanted = wanted[np.append(True, wanted[1:] != wanted[:-1])[: len(wanted)]]
    bits = min(max(int(len(wanted)).bit_length() + 7, _LEAST_BITS), _MOST_BITS)
    some = np.zeros(1 << bits, bool)
    some[_short(wanted, bits)] = True
    found = [np.empty(0, np.int64)]
    for at in range(0, len(keys) if len(wanted) else 0, _BLOCK):
        block = keys[at : at + _BLOCK]
        rows = np.flatnonzero(some[_short(block, bits)])
        own = block[rows]
        place = np.searchsorted(wanted, own)
        place[place == len(wanted)] = 0
        found.append(rows[wanted[place] == own] + at)
    return np.concatenate(found)


def _short(keys: np.ndarray, bits: int) -> np.ndarray:
    kind = keys.dtype.type
    return (keys * kind(0x9E3779B97F4A7C15 >> 64 - 8 * keys.itemsize | 1)) >> kind(8 * keys.itemsize - bits)


def repeated(keys: np.ndarray) -> np.ndarray:
    """The rows, rising, whose key another one has; uint32 or uint64."""
    parts = max(0, (len(keys) // _TOGETHER).bit_length())
    twice = [keys[:0]]
    for part in range(1 << parts):
        own = _part(keys, part, parts)
        own.sort()
        twice.append(own[1:][own[1:] == own[:-1]])
    return having(keys, np.concatenate(twice))


def _part(keys: np.ndarray, part: int, parts: int) -> np.ndarray:
    """Those whose first bits, `parts` of them, say so."""
    if not parts:
        return keys.copy()
    shift = keys.dtype.type(8 * keys.itemsize - parts)
    blocks = (keys[at : at + _BLOCK] for at in range(0, len(keys), _BLOCK))
    return np.concatenate([block[block >> shift == part] for block in blocks])


def repeats(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of uint64 (n, 2): the rows, rising, whose value came before, and of each the first row that has it."""
    rows = repeated(np.ascontiguousarray(values[:, 0]))
    numbers, firsts = numbered(values[rows])
    first = rows[firsts][numbers]
    later = first != rows
    return rows[later], first[later]


def firsts(values: np.ndarray) -> np.ndarray:
    """Of uint64 (n, 2): of each row the first one that has its value."""
    new = np.ones(len(values), bool)
    np.any(values[1:] != values[:-1], axis=1, out=new[1:])
    heads = np.flatnonzero(new)
    later, first = repeats(values[heads])
    own: np.ndarray = heads.astype(indices(len(values)))
    own[later] = heads[first]
    return np.repeat(own, np.diff(heads, append=len(values)))


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


def united(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of int64 (n, 2): what comes in pairs, rising, and of each the least of those that it is tied to by them, directly
    or through others."""
    named, compact = np.unique(pairs, return_inverse=True)
    pairs, roots = compact.reshape(-1, 2), np.arange(len(named))
    while len(pairs):
        first, second = roots[pairs[:, 0]], roots[pairs[:, 1]]
        apart = first != second
        pairs, first, second = pairs[apart], first[apart], second[apart]
        np.minimum.at(roots, np.maximum(first, second), np.minimum(first, second))
        while (further := roots[roots] != roots).any():
            roots[further] = roots[roots[further]]
    return named, named[roots]
