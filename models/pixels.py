"""uint8 pictures and the pixels that networks see. In: one. Out: the other.

Visual tokenizers see the half range, [-0.5, 0.5]; pixel_diffusion sees the full range, [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_pixels(images: Sequence[np.ndarray | Tensor], size: tuple[int, int]) -> Tensor:
    """uint8 images (H, W, 3) of any sizes -> float32 (B, 3, *size) in [-0.5, 0.5], scaled to cover `size` and
    cut at the centre."""
    rows = []
    for index, image in enumerate(images):
        x = torch.as_tensor(np.array(image))
        if x.ndim != 3 or x.shape[2] != 3 or x.dtype != torch.uint8:
            raise ValueError(f"images[{index}]: expected uint8 (H, W, 3), got {x.dtype} {tuple(x.shape)}")
        rows.append(_covering(x.permute(2, 0, 1).float(), size))
    return half_range(torch.stack(rows))


def _covering(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) scaled to cover `size` and cut at the centre. What the cut leaves out is not scaled: a strip of any
    length costs what its middle costs."""
    scale = max(size[0] / x.shape[1], size[1] / x.shape[2])
    inner = [max(s, round(n * scale)) for s, n in zip(size, x.shape[1:])]
    if inner == list(x.shape[1:]):
        top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
        return x[:, top : top + size[0], left : left + size[1]]
    cut = 1 if inner[0] > size[0] else 2  # one axis at most is cut, the other is covered just so
    weights, begin = _bilinear(x.shape[cut], inner[cut - 1], size[cut - 1])
    x = x.narrow(cut, begin, weights.shape[1])
    one_axis = (size[0], x.shape[2]) if cut == 2 else (x.shape[1], size[1])
    x = F.interpolate(x[None], size=one_axis, mode="bilinear", antialias=True, align_corners=False)[0]
    return weights @ x if cut == 1 else x @ weights.T


def _bilinear(length: int, scaled: int, count: int) -> tuple[Tensor, int]:
    """Weights (count, n) that take n samples from the returned number on to the middle `count` of the `scaled` that
    an antialiased bilinear filter makes of `length`."""
    step = length / scaled
    reach = max(step, 1.0)
    centres = ((scaled - count) // 2 + torch.arange(count, dtype=torch.float64) + 0.5) * step
    begin, end = max(0, int(centres[0] - reach)), min(length, int(centres[-1] + reach) + 1)
    distance = torch.arange(begin, end, dtype=torch.float64) + 0.5 - centres[:, None]
    weights = (1 - distance.abs() / reach).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float(), begin


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
