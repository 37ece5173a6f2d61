"""Scaling: uint8 pictures and frames to a size, by cutting first and scaling what is left.

In: (H, W, 3) or (T, H, W, 3). Out: the same with other H and W. A picture of extreme shape costs what its crop costs:
a strip of 1x100000 pixels that is to fill a square is never scaled as a whole. Pictures and videos, in training and in
evaluation, go through here; what a user of a model shows goes through `models.resample`, the same in torch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from omniloom.models.cover import Box, Size, centre_box

_centre_box = lru_cache(1 << 12)(centre_box)  # many pictures have the same sides


def resize(image: np.ndarray, size: tuple[int, int], box: Box | None = None) -> np.ndarray:
    """The picture, or the part of it in `box`, to `size` = (height, width), bicubic and free of aliasing; aspect not
    kept."""
    return _resample(image, size, box or (0.0, 0.0, float(image.shape[-2]), float(image.shape[-3])))


def resize_center_crop(
    image: np.ndarray, size: int | tuple[int, int], shown: tuple[int, int] | None = None
) -> np.ndarray:
    """Scale so that `size` (a side, or (height, width)) is just covered and keep the middle.

    `shown` is the (height, width) on display where the stored pixels are not square. Equal to scaling the whole and
    cutting `size` out of it.
    """
    target = (size, size) if isinstance(size, int) else size
    return _resample(image, target, _centre_box(image.shape[-3:-1], tuple(target), shown))


def _resample(image: np.ndarray, size: Size, box: Box) -> np.ndarray:
    """The part of the picture in `box` (left, top, right, bottom; pixels, fractions too) brought to (height, width)."""
    if image.ndim == 4:
        return np.stack([_resample(frame, size, box) for frame in image])
    height, width = size
    if (*image.shape[:2], *box) == (height, width, 0, 0, width, height):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))
