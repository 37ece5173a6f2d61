"""Whether two looks show one picture: they are laid upon one another, and nothing may be left between them anywhere.

In: looks, uint8 (n, frames * LOOK_BYTES), and windows (x, y, width, height) in sides. Out: coarse shapes, verdicts.

The part of one look in a window is moved and scaled, both axes apart, until it fits the other best (three steps of
Lucas and Kanade, "An iterative image registration technique", 1981; Baker and Matthews, "Lucas-Kanade 20 years on",
2004). What encoders, scaling and cutting leave is spread thinly; another expression of the same face is gathered at
one place. So what is left is measured in the whole and place by place, in levels and against the picture's contrast.
"""

from __future__ import annotations

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
_PLACES = ((np.arange(LOOK_SIDE) + 0.5) / LOOK_SIDE).astype(np.float32)


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


def alike(whole: np.ndarray, cut: np.ndarray, window: np.ndarray) -> np.ndarray:
    """bool (n,): whether each look of `whole` shows what lies in about the window of that of `cut`, in every frame."""
    frames = whole.shape[1] // LOOK_BYTES
    one, other = _pixels(whole), _pixels(cut)
    windows = np.tile(window, (len(one), 1)).astype(np.float32)
    for _ in range(_STEPS):
        windows = _nearer(one, other, windows)
    verdicts = _nothing_left(one, _warp(other, windows)) & (_edges_moved(windows, window) <= _MOST_MOVED)
    return np.asarray(verdicts.reshape(len(whole), frames).all(axis=1))


def _pixels(looks: np.ndarray) -> np.ndarray:
    return looks.reshape(-1, LOOK_SIDE, LOOK_SIDE, 3).astype(np.float32)


def _warp(pixels: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """The part of each picture in its window, brought to the whole side, linearly between pixels."""
    across, down = (_interpolation(windows[:, axis], windows[:, 2 + axis]) for axis in (0, 1))
    rows = np.matmul(down, pixels.reshape(len(pixels), LOOK_SIDE, LOOK_SIDE * 3))
    return np.matmul(across[:, None], rows.reshape(pixels.shape))


def _interpolation(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """float32 (n, LOOK_SIDE, LOOK_SIDE): weights of the stored pixels (last axis) in those of the part."""
    places = (start[:, None] + length[:, None] * _PLACES) * LOOK_SIDE - 0.5
    distance = np.abs(np.clip(places, 0, LOOK_SIDE - 1)[..., None] - np.arange(LOOK_SIDE))
    return np.maximum(0, 1 - distance).astype(np.float32)


def _nearer(one: np.ndarray, other: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Windows with which the parts of `other` fit `one` better, by least squares."""
    part = _warp(other, windows)
    mean = (part + one) / 2
    across, down = (np.gradient(mean, 1 / LOOK_SIDE, axis=axis) for axis in (2, 1))
    changes = [across, down, across * _PLACES[:, None], down * _PLACES[:, None, None]]
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
    at_a_place = np.abs(_means(luminance[..., None], 8)).max((1, 2, 3))
    colour = np.abs(_means(difference - luminance[..., None], 4)).max((1, 2, 3))
    return (
        (contrast >= _LEAST_CONTRAST)
        & (left <= _MOST_LEFT * contrast)
        & (at_a_place <= np.minimum(_MOST_AT_A_PLACE, _MOST_OF_CONTRAST * contrast))
        & (colour <= _MOST_COLOUR)
    )


def _means(values: np.ndarray, places: int) -> np.ndarray:
    """(n, places, places, channels) of (n, LOOK_SIDE, LOOK_SIDE, channels)."""
    side = LOOK_SIDE // places
    return values.reshape(len(values), places, side, places, side, -1).mean((2, 4))


def _blurred(pixels: np.ndarray) -> np.ndarray:
    """By 1 2 1 along both axes: what is scaled up again lacks what is finer."""
    wide = np.pad(pixels, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    rows = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    return (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / 16
