"""uint8 pictures and the pixels that networks see. In: one. Out: the other.

Visual tokenizers see the half range, [-0.5, 0.5]; pixel_diffusion sees the full range, [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniloom.models.cover import centre_box
from omniloom.models.resample import resample


def to_pixels(images: Sequence[np.ndarray | Tensor], size: tuple[int, int]) -> Tensor:
    """uint8 images (H, W, 3) of any sizes -> float32 (B, 3, *size) in [-0.5, 0.5], scaled to cover `size` and
    cut at the centre as in training."""
    rows = []
    for index, image in enumerate(images):
        x = torch.as_tensor(np.array(image))
        if x.ndim != 3 or x.shape[2] != 3 or x.dtype != torch.uint8 or not x.numel():
            raise ValueError(f"images[{index}]: expected uint8 (H, W, 3), got {x.dtype} {tuple(x.shape)}")
        rows.append(resample(x, size, centre_box(x.shape[:2], size)))
    return half_range(torch.stack(rows).permute(0, 3, 1, 2).float().contiguous())


def half_range(levels: Any) -> Any:
    """Levels 0 to 255, floats of numpy or torch, into [-0.5, 0.5], in place: a batch of clips is large."""
    levels /= 255
    levels -= 0.5
    return levels


def full_range(levels: Any) -> Any:
    """Levels 0 to 255, floats of numpy or torch, into [-1, 1], in place."""
    levels /= 127.5
    levels -= 1
    return levels


def half_to_full(pixels: Tensor) -> Tensor:
    return 2 * pixels


def full_to_half(pixels: Tensor) -> Tensor:
    return pixels / 2


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels about [-0.5, 0.5], channels at axis 1 -> uint8 with channels last."""
    return ((pixels.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
