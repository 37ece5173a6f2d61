"""Near twins: pictures that are copies of one another, re-encoded, scaled or cut at the edges, and clips of such
frames; texts that share most of what they say.

In: the looks and sketches of `stages.data.media.identity`, one row each. Out: pairs of rows, int64 (n, 2), each once,
the first below the second.

Both go two steps. Candidates come from tables of a locality-sensitive hash (Datar et al., "Locality-sensitive hashing
scheme based on p-stable distributions", 2004): rows with an equal hash lie side by side once a table is sorted, and
each is paired with those next to it. Then each pair is looked at: see `stages.ingest.registration` for pictures; of
two texts' sketches enough has to agree (of texts that share half of what they say 94 in 100 are looked at). Nothing is
drawn: the projections come from a fixed seed.

A picture that was cut is near the same cut of the other, so each is looked up as a whole and by `WINDOWS`, the parts
of it that a cut of up to 5% at every edge comes close to.

Cost. Of n rows each table takes a sort, n log n. A picture's tables have as many projections as keep the rows of one
hash few, 4 for thousands of pictures and about 2 more for each tenfold, and as many tables as find a copy by so many
projections: 22 for thousands, twice as many for each tenfold. Memory: 200 bytes a row, and the candidates; looks may be
a memory map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from omniloom.stages.ingest import registration
from omniloom.stages.ingest.registration import WINDOWS

_BLOCK = 4096  # rows worked on at once
_PAIRS = 512  # pairs of pictures laid upon one another at once
_NEIGHBOURS = 8  # rows that a row is paired with in one table, at most
_LEAST_PROJECTIONS, _MOST_PROJECTIONS, _CROWD = 4, 8, 16  # of a table; mean rows of one hash that call for one more
_WIDTH, _TOGETHER, _MISSED = 0.5, 0.68, 0.01  # of a hash's cell; that a copy lies in the same; that no table has it
_MOST_COARSE = 0.35  # of two coarse shapes' distance
_BANDS, _ROWS = 21, 3  # of a sketch: bands that are looked up, and values of each
AGREEING = 0.55  # the share of values that have to agree


def near_pictures(looks: np.ndarray) -> np.ndarray:
    """Pairs of rows of uint8 (n, frames * LOOK_BYTES), which may be a memory map: one frame of pictures, four of clips.

    The frames of both rows of a pair have to be alike, each in its place.
    """
    whole = _coarse(looks, 0)
    count = max(1, len(looks))
    found = np.empty(0, np.int64)
    for window in range(len(WINDOWS)):
        parts = _coarse(looks, window) if window else whole
        codes = np.setdiff1d(_candidates(whole, parts), found)
        for start in range(0, len(codes), _PAIRS):
            pairs = np.stack(divmod(codes[start : start + _PAIRS], count), axis=1)
            alike = registration.alike(looks[pairs[:, 0]], looks[pairs[:, 1]], np.array(WINDOWS[window]))
            pairs = np.sort(pairs[alike], axis=1)
            found = np.union1d(found, pairs[:, 0] * count + pairs[:, 1])
    return np.stack([found // count, found % count], axis=1)


def near_texts(sketches: np.ndarray, agreeing: float = AGREEING) -> np.ndarray:
    """Pairs of rows of uint32 (n, SKETCH) of which a share of at least `agreeing` of the values is the same."""
    found = np.empty(0, np.int64)
    count = max(1, len(sketches))
    for band in range(_BANDS):
        part = np.ascontiguousarray(sketches[:, band * _ROWS : (band + 1) * _ROWS]).astype(np.uint64)
        keys = np.zeros(len(part), np.uint64)
        for column in part.T:
            keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        new = []
        for pairs in _neighbours(keys, sketches[:, 0]):
            for start in range(0, len(pairs), _BLOCK):
                first, second = np.sort(pairs[start : start + _BLOCK], axis=1).T
                close = (sketches[first] == sketches[second]).mean(1) >= agreeing
                new.append(first[close] * count + second[close])
        found = np.unique(np.concatenate([found, *new]))
    return np.stack([found // count, found % count], axis=1)


def _candidates(whole: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Codes `i * n + j`, sorted, of rows i of which the whole is near the part of j."""
    count, same = len(whole), whole is parts
    codes = np.empty(0, np.int64)
    rows = whole if same else np.concatenate([whole, parts])
    for keys, fine in _tables(rows):
        new = []
        for pairs in _neighbours(keys, fine):
            pairs = pairs if same else _across(pairs, count)
            for start in range(0, len(pairs), _BLOCK):
                first, second = pairs[start : start + _BLOCK].T
                apart = whole[first].astype(np.float32) - parts[second]
                close = (np.square(apart).sum(1) <= _MOST_COARSE**2) & (first != second)
                new.append(first[close] * count + second[close])
        codes = np.unique(np.concatenate([codes, *new]))
    return codes


def _across(pairs: np.ndarray, count: int) -> np.ndarray:
    """Of pairs of rows of wholes, then parts, those of a whole and a part: as rows of both."""
    first, second = np.sort(pairs, axis=1).T
    kept = (first < count) & (second >= count)
    return np.stack([first[kept], second[kept] - count], axis=1)


def _neighbours(keys: np.ndarray, fine: np.ndarray) -> Iterator[np.ndarray]:
    """Rows with equal keys in pairs: each with the next few in the order of `fine`."""
    order = np.lexsort((fine, keys))
    sorted_keys = keys[order]
    for step in range(1, min(_NEIGHBOURS, len(keys) - 1) + 1):
        same = np.flatnonzero(sorted_keys[step:] == sorted_keys[:-step])
        if not len(same):
            break
        yield np.stack([order[same], order[same + step]], axis=1)


def _tables(coarse: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(key, fine order) of all rows, a table at a time. A key is where a row lies in a grid over random directions."""
    rng = np.random.default_rng(20)
    projections = _LEAST_PROJECTIONS
    while projections < _MOST_PROJECTIONS and _crowding(_keys(coarse, np.random.default_rng(21), projections)) > _CROWD:
        projections += 1
    for _ in range(math.ceil(math.log(_MISSED) / math.log(1 - _TOGETHER**projections))):
        keys = _keys(coarse, rng, projections)
        yield keys, _projected(coarse, rng.standard_normal((coarse.shape[1], 1)).astype(np.float32))[:, 0]


def _keys(coarse: np.ndarray, rng: np.random.Generator, projections: int) -> np.ndarray:
    directions = rng.standard_normal((coarse.shape[1], projections)).astype(np.float32)
    cells = _projected(coarse, directions) / _WIDTH + rng.random(projections, dtype=np.float32)
    return (np.floor(cells).astype(np.int64) + 128) @ (256 ** np.arange(projections))


def _projected(coarse: np.ndarray, directions: np.ndarray) -> np.ndarray:
    blocks = [coarse[at : at + _BLOCK].astype(np.float32) @ directions for at in range(0, max(1, len(coarse)), _BLOCK)]
    return np.concatenate(blocks)


def _crowding(keys: np.ndarray) -> float:
    """The mean, over all rows, of the rows that have the same key."""
    counts = np.unique(keys, return_counts=True)[1].astype(float)
    return float(np.square(counts).sum() / max(1.0, counts.sum()))


def _coarse(looks: np.ndarray, window: int) -> np.ndarray:
    """float16 (n, frames * 24): the coarse shape of the part in a window of every row."""
    blocks = [looks[at : at + _BLOCK] for at in range(0, max(1, len(looks)), _BLOCK)]
    return np.concatenate([registration.coarse(block, np.array(WINDOWS[window])) for block in blocks])
