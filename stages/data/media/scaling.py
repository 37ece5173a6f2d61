"""Scaling: uint8 pictures and frames to a size, by cutting first and scaling what is left.

In: (H, W, 3) or (T, H, W, 3). Out: the same with other H and W. A picture of extreme shape costs what its crop costs:
a strip of 1x100000 pixels that is to fill a square is never scaled as a whole.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """To `size` = (height, width), bicubic and free of aliasing; aspect not kept."""
    return _resample(image, size, (0.0, 0.0, float(image.shape[-2]), float(image.shape[-3])))


def resize_center_crop(
    image: np.ndarray, size: int | tuple[int, int], shown: tuple[int, int] | None = None
) -> np.ndarray:
    """Scale so that `size` (a side, or (height, width)) is just covered and keep the middle.

    `shown` is the (height, width) on display where the stored pixels are not square. Equal to scaling the whole and
    cutting `size` out of it.
    """
    target_h, target_w = (size, size) if isinstance(size, int) else size
    stored_h, stored_w = image.shape[-3:-1]
    height, width = shown or (stored_h, stored_w)
    scaled_h, scaled_w = cover(height, width, target_h, target_w)
    top, left = (scaled_h - target_h) // 2, (scaled_w - target_w) // 2
    down, across = stored_h / scaled_h, stored_w / scaled_w  # stored pixels in a scaled one
    box = (left * across, top * down, min((left + target_w) * across, stored_w), min((top + target_h) * down, stored_h))
    return _resample(image, (target_h, target_w), box)


def cover(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """The smallest (height, width) of the same aspect that covers the target."""
    scale = max(target_height / height, target_width / width)
    return max(target_height, round(height * scale)), max(target_width, round(width * scale))


def _resample(image: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """The part of the picture in `box` (left, top, right, bottom; pixels, fractions too) brought to (height, width)."""
    if image.ndim == 4:
        return np.stack([_resample(frame, size, box) for frame in image])
    height, width = size
    if image.shape[:2] == size and box == (0, 0, width, height):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC, box=box))
