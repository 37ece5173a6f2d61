"""Whether two looks show one picture: they are laid upon one another, and nothing may be left between them anywhere.

In: looks, uint8 (n, frames * LOOK_BYTES), and windows (x, y, width, height) in sides. Out: coarse shapes, verdicts.

The part of one look in a window is moved and scaled, both axes apart, until it fits the other best (three steps of
Lucas and Kanade, "An iterative image registration technique", 1981; Baker and Matthews, "Lucas-Kanade 20 years on",
2004). What encoders, scaling and cutting leave is spread thinly; another expression of the same face is gathered at
one place. So what is left is measured in the whole and place by place, in levels and against the picture's contrast.

Of pictures that are drawn alike, digits or icons, many are near one another and are no copies: laying all upon one
another would take minutes for thousands. So they are compared place by place as they lie first (`could_be`), then laid
upon one another by their luminance at half the side, and by their whole side where both leave little anywhere. Of 435
photographs, icons and drawings and their copies (re-encoded, scaled, cut by up to 5%) the first two would have let all
pass at 4.7 and 2.7 times what the last allows at a place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from omniloom.stages.data.media.identity import LOOK_BYTES, LOOK_SIDE

# The whole, a twentieth of each axis cut off at its ends in turn or at both, a twentieth cut off at every edge.
WINDOWS = (
    (0.0, 0.0, 1.0, 1.0),
    (0.025, 0.025, 0.95, 0.95),
    (0.0, 0.0, 0.95, 0.95),
    (0.05, 0.0, 0.95, 0.95),
    (0.0, 0.05, 0.95, 0.95),
    (0.05, 0.05, 0.95, 0.95),
    (0.05, 0.05, 0.9, 0.9),
)
_STEPS = 3
_MOST_MOVED = 0.06  # sides by which an edge of the window may move
_MOST_LEFT = 0.3  # of the contrast, over the whole
# At one place: levels of the luminance, against the contrast, and levels of a colour.
_MOST_AT_A_PLACE, _MOST_OF_CONTRAST, _MOST_COLOUR = 14.0, 0.33, 15.0
_LEAST_CONTRAST = 4.0  # levels; a picture with less shows nothing to be told by

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_GRID = 8  # places along a side
_AS_THEY_LIE, _SMALL = 6.0, 3.0  # times what may be left at a place: before anything is moved, and at half the side
_ROWS = 1024  # looks that are worked on at once


def coarse(looks: np.ndarray, window: np.ndarray) -> np.ndarray:
    """float16 (n, frames * 24): of the part in the window 4 x 4 means of the luminance, centred, of length 1, so that
    neither brightness nor contrast counts, and on the same scale 2 x 2 means of red and blue against the luminance.
    Flat pictures are near 0."""
    across, down = (_interpolation(window[[axis]], window[[2 + axis]])[0] for axis in (0, 1))
    across, down = (part.reshape(4, LOOK_SIDE // 4, LOOK_SIDE).mean(1) for part in (across, down))
    rows = np.matmul(down, _pixels(looks).reshape(-1, LOOK_SIDE, LOOK_SIDE * 3))
    means = np.matmul(across, rows.reshape(-1, 4, LOOK_SIDE, 3))
    grey = (means @ _LUMINANCE).reshape(-1, 16)
    grey -= grey.mean(1, keepdims=True)
    length = np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 4 * _LEAST_CONTRAST)
    colours = means.reshape(-1, 2, 2, 2, 2, 3).mean((2, 4))
    against = colours[..., ::2] - (colours @ _LUMINANCE)[..., None]
    shapes, frames = np.concatenate([grey, against.reshape(-1, 8)], axis=1) / length, looks.shape[1] // LOOK_BYTES
    return (shapes.reshape(len(looks), frames * 24) / np.sqrt(frames)).astype(np.float16)


def places(looks: Any, rows: np.ndarray, window: np.ndarray) -> np.ndarray:
    """float16 (rows, frames, 64): of these rows the mean luminance at 8 x 8 places of the part in the window."""
    across, down = (_interpolation(window[[axis]], window[[2 + axis]])[0] for axis in (0, 1))
    across, down = (part.reshape(_GRID, -1, LOOK_SIDE).mean(1) for part in (across, down))

    def block(some: np.ndarray) -> np.ndarray:
        luminance = (some.reshape(-1, 3).astype(np.float32) @ _LUMINANCE).reshape(-1, LOOK_SIDE, LOOK_SIDE)
        return np.matmul(np.matmul(down, luminance), across.T).reshape(len(some), -1, _GRID**2).astype(np.float16)

    found = [block(looks[rows[start : start + _ROWS]]) for start in range(0, len(rows), _ROWS)]
    return np.concatenate(found) if found else np.empty((0, 1, _GRID**2), np.float16)


def could_be(whole: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """bool (n,): whether `places` of looks are near enough for moving the one by a few hundredths to make them fit."""
    one, apart = whole.astype(np.float32), np.abs(whole - cut).max(-1)
    return np.asarray((apart <= _AS_THEY_LIE * _most_at_a_place(one.std(-1))).all(axis=1))


def alike(whole: np.ndarray, cut: np.ndarray, window: np.ndarray) -> np.ndarray:
    """bool (n,): whether each look of `whole` shows what lies in about the window of that of `cut`, in every frame."""
    frames = whole.shape[1] // LOOK_BYTES
    verdicts = np.asarray(_fits(_small(whole), _small(cut), window).reshape(len(whole), frames).all(axis=1))
    if not len(rows := np.flatnonzero(verdicts)):
        return verdicts
    one, other = _pixels(whole[rows]), _pixels(cut[rows])
    windows = _registered(one, other, window)
    sure = _nothing_left(one, _warp(other, windows)) & (_edges_moved(windows, window) <= _MOST_MOVED)
    verdicts[rows] = sure.reshape(len(rows), frames).all(axis=1)
    return verdicts


def _fits(one: np.ndarray, other: np.ndarray, window: np.ndarray) -> np.ndarray:
    """bool (n,): at no place much is left."""
    left = one - _warp(other, _registered(one, other, window))
    return np.abs(_means(left, _GRID)).max((1, 2, 3)) <= _SMALL * _most_at_a_place(one.std((1, 2, 3)))


def _registered(one: np.ndarray, other: np.ndarray, window: np.ndarray) -> np.ndarray:
    """float32 (n, 4): the window of each of `other` whose part fits `one` best, from this one on."""
    windows = np.tile(window, (len(one), 1)).astype(np.float32)
    for _ in range(_STEPS):
        windows = _nearer(one, other, windows)
    return windows


def _most_at_a_place(contrast: np.ndarray) -> np.ndarray:
    return np.minimum(_MOST_AT_A_PLACE, _MOST_OF_CONTRAST * contrast)


def _small(looks: np.ndarray) -> np.ndarray:
    """float32 (n * frames, side / 2, side / 2, 1): the luminance at half the side."""
    luminance = looks.reshape(-1, 3).astype(np.float32) @ _LUMINANCE
    return _means(luminance.reshape(-1, LOOK_SIDE, LOOK_SIDE, 1), LOOK_SIDE // 2)


def _pixels(looks: np.ndarray) -> np.ndarray:
    return looks.reshape(-1, LOOK_SIDE, LOOK_SIDE, 3).astype(np.float32)


def _warp(pixels: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """The part of each picture in its window, brought to the whole side, linearly between pixels."""
    side = pixels.shape[1]
    across, down = (_interpolation(windows[:, axis], windows[:, 2 + axis], side) for axis in (0, 1))
    rows = np.matmul(down, pixels.reshape(len(pixels), side, -1))
    return np.matmul(across[:, None], rows.reshape(pixels.shape))


def _interpolation(start: np.ndarray, length: np.ndarray, side: int = LOOK_SIDE) -> np.ndarray:
    """float32 (n, side, side): weights of the stored pixels (last axis) in those of the part."""
    lie = (start[:, None] + length[:, None] * _middles(side)) * side - 0.5
    distance = np.abs(np.clip(lie, 0, side - 1)[..., None] - np.arange(side))
    return np.maximum(0, 1 - distance).astype(np.float32)


def _middles(side: int) -> np.ndarray:
    """Of pixels, in sides."""
    return ((np.arange(side) + 0.5) / side).astype(np.float32)


def _nearer(one: np.ndarray, other: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Windows with which the parts of `other` fit `one` better, by least squares."""
    part, side = _warp(other, windows), one.shape[1]
    mean, middles = (part + one) / 2, _middles(side)
    across, down = (np.gradient(mean, 1 / side, axis=axis) for axis in (2, 1))
    changes = [across, down, across * middles[:, None], down * middles[:, None, None]]
    moves = np.stack([change.reshape(len(one), -1) for change in changes], axis=1)
    normal = np.matmul(moves, moves.transpose(0, 2, 1)) + 1e-3 * np.eye(4, dtype=np.float32)
    left = (one - part).reshape(len(one), -1, 1)
    by = np.clip(np.linalg.solve(normal, np.matmul(moves, left))[..., 0], -0.1, 0.1)
    start, length = windows[:, :2], windows[:, 2:]
    return np.concatenate([start + length * by[:, :2], length * (1 + by[:, 2:])], axis=1).astype(np.float32)


def _edges_moved(windows: np.ndarray, window: np.ndarray) -> np.ndarray:
    (start, length), (was, long) = (np.split(window, 2, axis=-1) for window in (windows, window))
    before, after = np.abs(start - was), np.abs(start + length - was - long)
    return np.maximum(before, after).max(1)


def _nothing_left(one: np.ndarray, part: np.ndarray) -> np.ndarray:
    one, part = _blurred(one), _blurred(part)
    difference = one - part
    luminance, grey = difference @ _LUMINANCE, one @ _LUMINANCE
    contrast = np.sqrt(np.square(grey - grey.mean((1, 2), keepdims=True)).mean((1, 2)))
    left = np.sqrt(np.square(luminance).mean((1, 2)))
    at_a_place = np.abs(_means(luminance[..., None], _GRID)).max((1, 2, 3))
    colour = np.abs(_means(difference - luminance[..., None], 4)).max((1, 2, 3))
    return (
        (contrast >= _LEAST_CONTRAST)
        & (left <= _MOST_LEFT * contrast)
        & (at_a_place <= _most_at_a_place(contrast))
        & (colour <= _MOST_COLOUR)
    )


def _means(values: np.ndarray, places: int) -> np.ndarray:
    """(n, places, places, channels) of (n, side, side, channels)."""
    side = values.shape[1] // places
    return values.reshape(len(values), places, side, places, side, -1).mean((2, 4))


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """By 1 2 1 along both axes: what is scaled up again lacks what is finer."""
    wide = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    rows = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
