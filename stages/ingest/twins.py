"""Near twins: pictures that are copies of one another, re-encoded, scaled or cut a little at the edges; texts that
share most of what they say.

In: the looks and sketches of `stages.data.media.identity`, one row each. Out: pairs of rows, int64 (n, 2), each once,
the first below the second.

Both go two steps. Candidates come from tables of a locality-sensitive hash: rows with an equal hash lie side by side
once a table is sorted, and each is paired with those next to it, so that memory and work grow with the number of rows
alone. Then each pair is looked at: two pictures are laid upon one another (shift and scale of both axes, by least
squares) and what is left has to be small, in levels and against their contrast; of two texts' sketches enough has to
agree. Nothing is drawn: the projections come from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from omniloom.stages.data.media.identity import LOOK_SIDE, SKETCH

_BLOCK = 8192  # rows worked on at once
_NEIGHBOURS = 8  # rows that a row is paired with in one table, at most
_TABLES, _PROJECTIONS, _WIDTH = 16, 4, 0.5
_MOST_COARSE = 0.45  # of two coarse shapes' distance
# Levels of 255; of a side; of the contrast, for pictures and for clips, many of which share their background.
_MOST_ERROR, _MOST_MOVED, PICTURES, CLIPS = 10.0, 0.09, 0.22, 0.12
_BANDS, _AGREEING = 16, 0.75  # of a sketch: bands that are looked up, and the share of values that have to agree


def near_pictures(looks: np.ndarray, most: float = PICTURES) -> np.ndarray:
    """Pairs of rows of uint8 (n, LOOK_SIDE ** 2 * 3), which may be a memory map; `most` may be left between two, as a
    share of their contrast: PICTURES or CLIPS."""
    blocks = [looks[at : at + _BLOCK] for at in range(0, max(1, len(looks)), _BLOCK)]
    coarse = np.concatenate([_coarse(block) for block in blocks])
    limits = np.minimum(_MOST_ERROR, most * np.concatenate([_contrast(block) for block in blocks]))

    def alike(pairs: np.ndarray) -> np.ndarray:
        close = np.square(coarse[pairs[:, 0]] - coarse[pairs[:, 1]]).sum(1) <= _MOST_COARSE**2
        first, second = pairs[close].T
        close[close] = _alike(looks[first], looks[second], np.minimum(limits[first], limits[second]))
        return close

    found = _Pairs()
    for keys, fine in _picture_tables(coarse):
        for pairs in _neighbours(keys, fine):
            found.add(pairs, alike)
    return found.all()


def near_texts(sketches: np.ndarray) -> np.ndarray:
    """Pairs of rows of uint32 (n, SKETCH)."""
    found = _Pairs()
    rows = SKETCH // _BANDS
    for band in range(_BANDS):
        part = np.ascontiguousarray(sketches[:, band * rows : (band + 1) * rows]).astype(np.uint64)
        keys = np.zeros(len(part), np.uint64)
        for column in part.T:
            keys = (keys ^ column) * np.uint64(0x9E3779B97F4A7C15)
        for pairs in _neighbours(keys, sketches[:, 0]):
            found.add(pairs, lambda pairs: (sketches[pairs[:, 0]] == sketches[pairs[:, 1]]).mean(1) >= _AGREEING)
    return found.all()


class _Pairs:
    """Pairs that were found, each once."""

    def __init__(self):
        self._found: set[tuple[int, int]] = set()

    def add(self, pairs: np.ndarray, alike) -> None:
        for start in range(0, len(pairs), _BLOCK):
            part = np.sort(pairs[start : start + _BLOCK], axis=1)
            self._found |= set(map(tuple, part[alike(part)].tolist()))

    def all(self) -> np.ndarray:
        return np.array(sorted(self._found), np.int64).reshape(-1, 2)


def _neighbours(keys: np.ndarray, fine: np.ndarray) -> Iterator[np.ndarray]:
    """Rows with equal keys in pairs: each with the next few in the order of `fine`."""
    order = np.lexsort((fine, keys))
    sorted_keys = keys[order]
    for step in range(1, min(_NEIGHBOURS, len(keys) - 1) + 1):
        same = np.flatnonzero(sorted_keys[step:] == sorted_keys[:-step])
        if not len(same):
            break
        yield np.stack([order[same], order[same + step]], axis=1)


def _picture_tables(coarse: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(key, fine order) of all rows, a table at a time. A key is where a picture lies in a grid over random
    directions."""
    rng = np.random.default_rng(20)
    for _ in range(_TABLES):
        directions = rng.standard_normal((16, _PROJECTIONS)).astype(np.float32)
        cells = np.floor(coarse @ directions / _WIDTH + rng.random(_PROJECTIONS, dtype=np.float32)).astype(np.int64)
        yield (cells + 128) @ (256 ** np.arange(_PROJECTIONS)), coarse @ rng.standard_normal(16).astype(np.float32)


def _coarse(looks: np.ndarray) -> np.ndarray:
    """float32 (n, 16): 4 x 4 means of the luminance, centred, of length 1, so that neither brightness nor contrast
    counts; flat pictures are 0."""
    side = LOOK_SIDE // 4
    grey = looks.reshape(-1, 4, side, 4, side, 3).astype(np.float32).mean((2, 4)) @ np.float32([0.299, 0.587, 0.114])
    grey = grey.reshape(-1, 16)
    grey -= grey.mean(1, keepdims=True)
    return grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-3)


def _alike(a: np.ndarray, b: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """bool (n,): whether two looks show one picture, once it is shifted and scaled a little: what is then left between
    them is at most `limit` levels."""
    a, b = _pixels(a), _pixels(b)
    left = (b - a).reshape(len(a), LOOK_SIDE**2 * 3)
    plausible = np.sqrt(np.square(left).mean(1)) <= 3 * limit  # of what a little movement can explain
    moves, left = _moves((a[plausible] + b[plausible]) / 2), left[plausible]
    normal = np.einsum("nip,njp->nij", moves, moves) + 1e-3 * np.eye(4)
    by = np.linalg.solve(normal, np.einsum("nip,np->ni", moves, left)[..., None])[..., 0]
    error = np.sqrt(np.square(left - np.einsum("ni,nip->np", by, moves)).mean(1))
    moved = (np.abs(by[:, :2]) + np.abs(by[:, 2:])).max(1)  # of a side, at its edge
    plausible[plausible] = (error <= limit[plausible]) & (moved <= _MOST_MOVED)
    return plausible


def _pixels(looks: np.ndarray) -> np.ndarray:
    return looks.reshape(-1, LOOK_SIDE, LOOK_SIDE, 3).astype(np.float32)


def _contrast(looks: np.ndarray) -> np.ndarray:
    """Levels (n,) by which the pixels of a look differ from their mean."""
    looks = _pixels(looks)
    return np.sqrt(np.square(looks - looks.mean((1, 2), keepdims=True)).mean((1, 2, 3)))


def _moves(looks: np.ndarray) -> np.ndarray:
    """float (n, 4, pixels): what a picture changes by when its rows or columns are shifted by a side, or scaled about
    the middle so that an edge moves by a side."""
    slopes = [np.gradient(looks, 1 / LOOK_SIDE, axis=axis) for axis in (1, 2)]
    places = (np.arange(LOOK_SIDE) + 0.5) / LOOK_SIDE * 2 - 1
    scaled = [slopes[0] * places[:, None, None], slopes[1] * places[None, :, None]]
    return np.stack([*slopes, *scaled], axis=1).reshape(len(looks), 4, LOOK_SIDE**2 * 3)
