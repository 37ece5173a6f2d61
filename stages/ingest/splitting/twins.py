"""Near twins among pictures: copies of one another, re-encoded, scaled or cut at the edges, and clips of such frames.

In: the looks of `stages.data.media.identity`, one row each. Out: pairs of rows, int64 (n, 2), each once, the first
below the second.

Two steps. Candidates come from tables of a locality-sensitive hash (Datar et al., "Locality-sensitive hashing scheme
based on p-stable distributions", 2004): rows with an equal hash lie side by side once a table is sorted, and each is
paired with those next to it. Then each pair is looked at: see `stages.ingest.splitting.registration`. Nothing is drawn:
the projections come from a fixed seed.

A picture that was cut is near the same cut of the other, so each is looked up as a whole and by `WINDOWS`, the parts
of it that a cut of up to 5% at every edge comes close to.

Cost. Of n rows each table takes a sort, n log n. A table has as many projections as keep the rows of one hash few, 4
for thousands of pictures and about 2 more for each tenfold, and there are as many tables as find a copy by so many
projections: 22 for thousands, twice as many for each tenfold. Memory: 200 bytes a row, and the candidates; looks may be
a memory map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from omniloom.stages.data.media.identity import LOOK_BYTES
from omniloom.stages.ingest.splitting import registration
from omniloom.stages.ingest.splitting.columns import having
from omniloom.stages.ingest.splitting.lookup import Fine, Since, Values, neighbours
from omniloom.stages.ingest.splitting.registration import WINDOWS

_BLOCK = 4096  # rows worked on at once
_PAIRS = 512  # pairs of pictures laid upon one another at once
_POSSIBLE = 1 << 16  # pairs of them of which the places are compared at once
_TABLES_TOGETHER = 16
_LEAST_PROJECTIONS, _MOST_PROJECTIONS, _CROWD = 4, 8, 16  # of a table; mean rows of one hash that call for one more
_WIDTH, _TOGETHER, _MISSED = 0.5, 0.68, 0.01  # of a hash's cell; that a copy lies in the same; that no table has it
_MOST_COARSE = 0.35  # of two coarse shapes' distance


def shapes(looks: Values, rows: np.ndarray | None = None) -> np.ndarray:
    """float16 (n, windows, frames * 24): the coarse shapes of each of the rows, by default of all, as a whole and of
    the parts in `WINDOWS`."""
    rows = np.arange(len(looks)) if rows is None else rows
    found = np.empty((len(rows), len(WINDOWS), looks.shape[1] // LOOK_BYTES * 24), np.float16)
    for at in range(0, len(rows), _BLOCK):
        block = looks[rows[at : at + _BLOCK]]
        for window, part in enumerate(WINDOWS):
            found[at : at + _BLOCK, window] = registration.coarse(block, np.array(part))
    return found


def projections(coarse: np.ndarray) -> np.ndarray:
    """How many a table of each window has, int (windows,)."""
    return np.array([_projections(_compared(coarse, window)) for window in range(coarse.shape[1])])


def near_pictures(
    looks: Values,
    coarse: np.ndarray | None = None,
    since: Since | None = None,
    projected: np.ndarray | None = None,
) -> np.ndarray:
    """Pairs of rows of uint8 (n, frames * LOOK_BYTES), which may be a memory map: one frame of pictures, four of clips.

    The frames of both rows of a pair have to be alike, each in its place. `coarse` are the rows' `shapes`, `projected`
    their `projections`; rows were compared `since` by as many.
    """
    if len(looks) < 2 or since and not (since.asked.any() or len(since.gone)):
        return np.empty((0, 2), np.int64)
    coarse = shapes(looks) if coarse is None else coarse
    projected = projections(coarse) if projected is None else projected
    count = max(1, len(looks))
    found = np.empty(0, np.int64)
    for window in range(len(WINDOWS)):
        codes = np.setdiff1d(_candidates(coarse, window, int(projected[window]), since), found)
        codes = _possible(looks, codes, window)
        for start in range(0, len(codes), _PAIRS):
            pairs = np.stack(divmod(codes[start : start + _PAIRS], count), axis=1)
            alike = registration.alike(looks[pairs[:, 0]], looks[pairs[:, 1]], np.array(WINDOWS[window]))
            pairs = np.sort(pairs[alike], axis=1)
            found = np.union1d(found, pairs[:, 0] * count + pairs[:, 1])
    return np.stack([found // count, found % count], axis=1)


def _compared(coarse: np.ndarray, window: int) -> np.ndarray:
    """What is looked up: the wholes, and the parts in the window."""
    return np.concatenate([coarse[:, 0], coarse[:, window]]) if window else coarse[:, 0]


def _candidates(coarse: np.ndarray, window: int, projected: int, since: Since | None) -> np.ndarray:
    """Codes `i * n + j`, sorted, of rows i of which the whole is near the part of j in a window."""
    whole, parts, count = coarse[:, 0], coarse[:, window], len(coarse)
    codes = np.empty(0, np.int64)
    rows = _compared(coarse, window)
    asked, gone = None, rows[:0]
    if since is not None:
        asked, gone = np.flatnonzero(np.tile(since.asked, 2 if window else 1)), _compared(since.gone, window)
    for keys, others, fine in _tables(rows, gone, projected, 1 if asked is None else _TABLES_TOGETHER):
        chosen = None if asked is None else having(keys, np.append(keys.reshape(-1, len(rows))[:, asked], others))
        new = []
        for pairs in neighbours(keys, fine, chosen):
            pairs = pairs % len(rows)
            pairs = _across(pairs, count) if window else pairs
            for start in range(0, len(pairs), _BLOCK):
                first, second = pairs[start : start + _BLOCK].T
                apart = whole[first].astype(np.float32) - parts[second]
                close = (np.square(apart).sum(1) <= _MOST_COARSE**2) & (first != second)
                new.append(first[close] * count + second[close])
        codes = np.unique(np.concatenate([codes, *new]))
    return codes


def _possible(looks: Values, codes: np.ndarray, window: int) -> np.ndarray:
    """Of pairs' codes those of which the looks, as they lie, are near enough to be laid upon one another."""
    kept, count = [np.empty(0, np.int64)], max(1, len(looks))
    for start in range(0, len(codes), _POSSIBLE):
        some = codes[start : start + _POSSIBLE]
        (wholes, first), (parts, second) = (np.unique(rows, return_inverse=True) for rows in divmod(some, count))
        near = registration.could_be(
            registration.places(looks, wholes, np.array(WINDOWS[0]))[first],
            registration.places(looks, parts, np.array(WINDOWS[window]))[second],
        )
        kept.append(some[near])
    return np.concatenate(kept)


def _across(pairs: np.ndarray, count: int) -> np.ndarray:
    """Of pairs of rows of wholes, then parts, those of a whole and a part: as rows of both."""
    first, second = np.sort(pairs, axis=1).T
    kept = (first < count) & (second >= count)
    return np.stack([first[kept], second[kept] - count], axis=1)


def _projections(coarse: np.ndarray) -> int:
    projections = _LEAST_PROJECTIONS
    while projections < _MOST_PROJECTIONS:
        keys = _keys(coarse, [_grid(np.random.default_rng(21), coarse.shape[1], projections)])[:, 0]
        if _crowding(keys) <= _CROWD:
            break
        projections += 1
    return projections


def _tables(
    coarse: np.ndarray, others: np.ndarray, projections: int, together: int
) -> Iterator[tuple[np.ndarray, np.ndarray, Fine]]:
    """Keys of all rows and of the others, and the fine order of rows, a table at a time, or so many one after another
    (row 5 of the second table is the fifth behind those of the first). A key is where a row lies in a grid over random
    directions."""
    rng = np.random.default_rng(20)
    width = coarse.shape[1]
    count = math.ceil(math.log(_MISSED) / math.log(1 - _TOGETHER**projections))
    drawn = [(_grid(rng, width, projections), rng.standard_normal((width, 1)).astype(np.float32)) for _ in range(count)]
    for start in range(0, count, _TABLES_TOGETHER):
        some = drawn[start : start + _TABLES_TOGETHER]
        keys, keys_of_others = (_keys(rows, [grid for grid, _ in some]) for rows in (coarse, others))
        for at in range(0, len(some), together):
            part = slice(at, at + together)
            own, theirs = (_of_tables(found[:, part]) for found in (keys, keys_of_others))
            yield own, theirs, _order(coarse, [direction for _, direction in some[part]])


def _of_tables(keys: np.ndarray) -> np.ndarray:
    """uint64 (tables * n,): keys (n, tables) as they are looked up, those of a table other ones than of the others."""
    own = np.random.default_rng(22).integers(0, 1 << 64, keys.shape[1], np.uint64)
    return (keys.T ^ own[:, None]).ravel()


def _order(coarse: np.ndarray, directions: list[np.ndarray]) -> Fine:
    def fine(rows: np.ndarray) -> np.ndarray:
        tables, rows = np.divmod(rows, len(coarse))
        found = np.empty(len(rows), np.float32)
        for table, direction in enumerate(directions):
            start, stop = np.searchsorted(tables, (table, table + 1)).tolist()  # rows rise
            found[start:stop] = _projected(coarse[rows[start:stop]], direction)[:, 0]
        return found

    return fine


Grid = tuple[np.ndarray, np.ndarray]  # directions (width, projections), offsets (projections,)


def _grid(rng: np.random.Generator, width: int, projections: int) -> Grid:
    return rng.standard_normal((width, projections)).astype(np.float32), rng.random(projections, dtype=np.float32)


def _keys(coarse: np.ndarray, grids: list[Grid]) -> np.ndarray:
    """uint64 (n, grids): a byte for each direction of a grid, of at most eight."""
    directions = np.concatenate([directions for directions, _ in grids], axis=1)
    offsets = np.concatenate([offsets for _, offsets in grids])
    keys = np.zeros((len(coarse), len(grids), 8), np.uint8)
    for at in range(0, len(coarse), _BLOCK):
        cells = coarse[at : at + _BLOCK].astype(np.float32) @ directions
        cells /= _WIDTH
        cells += offsets
        np.floor(cells, out=cells)
        cells += 128
        lines = cells.astype(np.int16).astype(np.uint8).reshape(len(cells), len(grids), -1)
        keys[at : at + _BLOCK, :, : lines.shape[2]] = lines
    return keys.view(np.uint64)[..., 0]


def _projected(coarse: np.ndarray, directions: np.ndarray) -> np.ndarray:
    blocks = [coarse[at : at + _BLOCK].astype(np.float32) @ directions for at in range(0, max(1, len(coarse)), _BLOCK)]
    return np.concatenate(blocks)


def _crowding(keys: np.ndarray) -> float:
    """The mean, over all rows, of the rows that have the same key."""
    counts = np.unique(keys, return_counts=True)[1].astype(float)
    return float(np.square(counts).sum() / max(1.0, counts.sum()))
