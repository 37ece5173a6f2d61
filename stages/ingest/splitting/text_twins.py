"""Texts that say nearly the same. In: a sketch of each, uint32 (n, SKETCH). Out: pairs of rows, int64 (n, 2), each
once, the first below the second.

Candidates share one of `BANDS` bands, hashes of a few values of a sketch, and lie side by side once the rows that share
it are sorted; of two sketches enough has to agree (of texts that share half of what they say 94 in 100 are looked at).

Cost. Bands are looked up one after another, by as many threads as there are CPUs: each holds 4 bytes a text. Sketches
are read of the texts that share a band alone, and lie in a temporary file if they are many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from omniloom.stages.data.media.sketches import SKETCH, densified
from omniloom.stages.ingest.splitting.columns import having, repeated
from omniloom.stages.ingest.splitting.lookup import Since, Values, neighbours
from omniloom.stages.ingest.splitting.spilled import scratch
from omniloom.stages.ingest.splitting.threads import side_by_side

BANDS, _ROWS = 21, 3  # of a sketch: bands that are looked up, and values of each
AGREEING = 0.55  # the share of values that have to agree
_BLOCK = 4096  # rows worked on at once


class ByBand(Protocol):
    """Of each band uint32 (n,): an array of (BANDS, n), or what gives its rows as one does."""

    def __getitem__(self, band: int, /) -> np.ndarray: ...


def bands(sketches: np.ndarray) -> np.ndarray:
    """uint32 (BANDS, n): what of these sketches has to be equal to be looked at, in 32 bits each."""
    found = np.empty((BANDS, len(sketches)), np.uint32)
    for at in range(0, len(sketches), _BLOCK):
        values = densified(sketches[at : at + _BLOCK])[:, : BANDS * _ROWS].astype(np.uint64)
        keys = np.zeros((len(values), BANDS), np.uint64)
        for place in range(_ROWS):
            keys = (keys ^ values[:, place::_ROWS]) * np.uint64(0x9E3779B97F4A7C15)
        found[:, at : at + _BLOCK] = (keys >> np.uint64(32)).T
    return found


def near_texts(
    sketches: Values,
    agreeing: float = AGREEING,
    looked_up: ByBand | None = None,
    since: Since | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Pairs of rows of uint32 (n, SKETCH) of which a share of at least `agreeing` of the values is the same.
    `looked_up` are the rows' `bands`; `order`, where it is not that of the rows, decides between equal ones."""
    if len(sketches) < 2 or since and not (since.asked.any() or since.gone.size):
        return np.empty((0, 2), np.int64)
    looked_up = bands(sketches[np.arange(len(sketches))]) if looked_up is None else looked_up
    rows = _candidates(looked_up, len(sketches), since)
    if not len(rows):
        return np.empty((0, 2), np.int64)
    filled, first = _read(sketches, rows)
    rank = np.argsort(np.argsort(rows if order is None else order[rows]))

    def pairs_of(band: int) -> np.ndarray:
        keys = looked_up[band][rows]
        chosen = np.arange(len(keys))
        if since is not None:
            chosen = having(keys, np.append(keys[since.asked[rows]], since.gone[band]))
        chosen = chosen[repeated(keys[chosen])]
        chosen = chosen[np.argsort(rank[chosen])]
        new = [np.empty(0, np.int64)]
        for pairs in neighbours(keys, lambda some: first[some], chosen):
            for start in range(0, len(pairs), _BLOCK):
                one, other = np.sort(pairs[start : start + _BLOCK], axis=1).T
                close = (filled[one] == filled[other]).mean(1) >= agreeing
                new.append(one[close] * len(rows) + other[close])
        return np.unique(np.concatenate(new))

    found = np.empty(0, np.int64)
    for new in side_by_side(pairs_of, range(BANDS)):
        found = np.union1d(found, new)
    return np.stack([rows[found // len(rows)], rows[found % len(rows)]], axis=1)


def _candidates(looked_up: ByBand, count: int, since: Since | None) -> np.ndarray:
    """The rows, rising, that share a band, with what may have changed if that is known."""

    def of_band(band: int) -> np.ndarray:
        keys = looked_up[band]
        if since is None:
            return repeated(keys)
        rows = having(keys, np.append(keys[since.asked], since.gone[band]))
        return rows[repeated(keys[rows])]

    some = np.zeros(count, bool)
    for rows in side_by_side(of_band, range(BANDS)):
        some[rows] = True
    return np.flatnonzero(some)


def _read(sketches: Values, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of these rows the sketches without empty places, and the first value as it was."""
    filled, first = scratch((len(rows), SKETCH), np.uint32), np.empty(len(rows), np.uint32)

    def read(at: int) -> tuple[int, np.ndarray, np.ndarray]:
        found = sketches[rows[at : at + _BLOCK]]
        return at, densified(found), found[:, 0]

    blocks: Iterator[tuple[int, np.ndarray, np.ndarray]] = side_by_side(read, range(0, len(rows), _BLOCK))
    for at, some, values in blocks:
        filled[at : at + _BLOCK], first[at : at + _BLOCK] = some, values
    return filled, first
