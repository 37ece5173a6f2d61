"""Pixels of a video frame as a player shows them: turned, mirrored, with square pixels, transparency on white.

In: libav's frames. Out: uint8 (H, W, 3). Colours are those that ffmpeg gives without a filter: the matrix and range
that the stream names, BT.601 where it names none, no tone mapping of HDR.
"""

from __future__ import annotations

from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type

from omniloom.stages.data.media.scaling import resize, resize_center_crop


def display_size(frame: av.VideoFrame, pixel_aspect: float) -> tuple[int, int]:
    """(height, width) on display, with pixels made square by changing the width and the display matrix applied."""
    width = max(1, round(frame.width * pixel_aspect))
    return (width, frame.height) if _orientation(frame)[0] else (frame.height, width)


def displayed(
    frame: av.VideoFrame, pixel_aspect: float, size: int | tuple[int, int] | None, whole: tuple[int, int]
) -> np.ndarray:
    """The frame scaled and cut to `size` (a side, or (height, width)), or as a whole at (height, width) `whole`."""
    turned, across, down = _orientation(frame)
    array = _rgb(frame)
    if turned:
        array = array.transpose(1, 0, 2)
    array = array[:: -1 if down else 1, :: -1 if across else 1]
    if size is None:
        return np.ascontiguousarray(resize(array, whole))
    return np.ascontiguousarray(resize_center_crop(array, size, display_size(frame, pixel_aspect)))


def _rgb(frame: av.VideoFrame) -> np.ndarray:
    """uint8 (H, W, 3) as stored, on white."""
    alpha = frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)
    array = frame.reformat(
        format="rgba" if alpha else "rgb24", interpolation=av.video.reformatter.Interpolation.AREA
    ).to_ndarray()
    if not alpha:
        return array
    opacity = array[..., 3:].astype(np.uint16)
    return ((array[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """(axes exchanged, then mirrored across, then mirrored top to bottom): the display matrix (a b u, c d v, x y w)
    takes (x, y) to (ax + cy, bx + dy) (ISO/IEC 14496-12, 6.2.2). Turns that are no quarters go to the nearest."""
    matrix = cast(Any, frame.side_data).get(Type.DISPLAYMATRIX)
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0
