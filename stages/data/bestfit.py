"""Best-fit decreasing with bounded integer sizes: items into rows, by counts of equal sizes, never item by item."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass

import numpy as np

_LEAST_PIECE = 16  # tokens of a text that is cut: the shorter, the less a token has before it to be predicted from
_TRIES = 8  # rows in turn that could not be poured out: others will not either


@dataclass(frozen=True)
class Packed:
    """Pieces in rows, sorted by row: int64 (pieces,) each. `item` is whose piece it is, `begin` and `size` which."""

    row: np.ndarray
    item: np.ndarray
    begin: np.ndarray
    size: np.ndarray


def pack(sizes: np.ndarray, cuttable: np.ndarray, length: int) -> Packed:
    """Each item, int64 (N,) from 1 to `length`, goes into the fullest row that has room for it, the largest first.
    Then rows of `cuttable` items alone (bool (N,)), the emptiest first, are cut to fill what other rows have left,
    where that saves the whole row."""
    rows, free = _best_fit(sizes, length)
    order = np.lexsort((-sizes, rows))  # in a row the largest first
    poured = _pour_rows(rows, free, sizes, cuttable, order, length)
    kept = ~np.isin(rows[order], list(poured)) if poured else np.ones(len(order), bool)
    order = order[kept]
    found: list[tuple[np.ndarray, ...]] = [(rows[order], order, np.zeros(len(order), np.int64), sizes[order])]
    if poured:
        pieces = np.array(list(itertools.chain(*poured.values())), np.int64).reshape(-1, 4)
        found.append(tuple(pieces.T))
    row, item, begin, size = (np.concatenate(columns) for columns in zip(*found, strict=True))
    chosen = np.argsort(row, kind="stable")
    _, numbered = np.unique(row, return_inverse=True)
    return Packed(numbered[chosen], item[chosen], begin[chosen], size[chosen])


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, dict[int, list[int]]]:
    """The row of each item, and rows by what they have left."""
    order = np.argsort(-sizes, kind="stable")
    different, counts = np.unique(-sizes, return_counts=True)
    rooms: dict[int, list[int]] = {}
    free: list[int] = []  # what some row has left, sorted
    taken: list[int] = []
    times: list[int] = []
    opened = 0

    def leave(room: int, rows: list[int]) -> None:
        if not room:
            return
        if room in rooms:
            rooms[room] += rows
        else:
            rooms[room] = list(rows)
            bisect.insort(free, room)

    for size, count in zip((-different).tolist(), counts.tolist(), strict=True):
        while count:
            at = bisect.bisect_left(free, size)
            if at == len(free):
                room, rows = length, list(range(opened, opened + -(-count // (length // size))))
                opened += len(rows)
            else:
                room = free.pop(at)
                rows = rooms.pop(room)
            each = room // size
            whole = min(len(rows), count // each)
            if whole:
                filled = rows[-whole:]
                del rows[-whole:]
                taken += filled
                times += [each] * whole
                count -= whole * each
                leave(room - each * size, filled)
            if count and rows:
                last = rows.pop()
                taken.append(last)
                times.append(count)
                leave(room - count * size, [last])
                count = 0
            if rows:
                leave(room, rows)
    found = np.empty(len(sizes), np.int64)
    found[order] = np.repeat(np.array(taken, np.int64), np.array(times, np.int64))
    return found, rooms


_Piece = tuple[int, int, int, int]  # row, item, begin, size


def _pour_rows(
    rows: np.ndarray,
    free: dict[int, list[int]],
    sizes: np.ndarray,
    cuttable: np.ndarray,
    order: np.ndarray,
    length: int,
) -> dict[int, list[_Piece]]:
    """The rows that are poured into others, and the pieces that they become. `order` has the items row by row."""
    room = sorted((left, row) for left, rows_left in free.items() for row in rows_left)
    used = np.bincount(rows, weights=sizes).astype(np.int64)
    whole = np.bincount(rows, weights=~cuttable) == 0
    ends = np.cumsum(np.bincount(rows))
    poured: dict[int, list[_Piece]] = {}
    left, tries = sum(tokens for tokens, _ in room), 0
    donors = np.flatnonzero(whole)
    for donor in donors[np.argsort(used[donors], kind="stable")].tolist():
        if left < length or tries == _TRIES:  # no row can be spared
            break
        others = [entry for entry in room if entry[1] != donor]
        pieces: list[_Piece] = []
        for item in order[ends[donor - 1] if donor else 0 : ends[donor]].tolist():
            found = _pour(item, int(sizes[item]), others)
            pieces += found
            if not found:
                tries += 1
                break
        else:
            poured[donor], room, tries = pieces, others, 0
            left -= length
    return poured


def _pour(item: int, size: int, room: list[tuple[int, int]]) -> list[_Piece]:
    """The pieces of an item: whole where it fits best, else cut over the largest of `room`, as few as hold it; none
    where a piece would be too small. `room`, sorted (left, row), is brought up to date."""
    at = bisect.bisect_left(room, (size, -1))
    if at < len(room):
        taken, parts = [room.pop(at)], [size]
    else:
        count = total = 0
        while total < size and count < len(room) and room[-1 - count][0] >= _LEAST_PIECE:
            total += room[-1 - count][0]
            count += 1
        if total < size or count * _LEAST_PIECE > size:
            return []
        taken = [room.pop() for _ in range(count)]
        parts, spare = [], total - size
        for left, _ in taken:
            parts.append(max(_LEAST_PIECE, left - spare))
            spare -= left - parts[-1]
    pieces, begin = [], 0
    for (left, row), part in zip(taken, parts, strict=True):
        pieces.append((row, item, begin, part))
        begin += part
        if left > part:
            bisect.insort(room, (left - part, row))
    return pieces
