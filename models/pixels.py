"""uint8 pictures and the pixels that networks see. In: one. Out: the other."""

from __future__ import annotations

from collections.abc import Sequence

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
        x = x.permute(2, 0, 1)[None].float()
        scale = max(size[0] / x.shape[2], size[1] / x.shape[3])
        inner = tuple(max(s, round(n * scale)) for s, n in zip(size, x.shape[2:]))
        if inner != tuple(x.shape[2:]):
            x = F.interpolate(x, size=inner, mode="bilinear", antialias=True, align_corners=False)
        top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
        rows.append(x[0, :, top : top + size[0], left : left + size[1]])
    return torch.stack(rows) / 255 - 0.5


def to_uint8(pixels: Tensor) -> np.ndarray:
    """Pixels about [-0.5, 0.5], channels at axis 1 -> uint8 with channels last."""
    return ((pixels.float() + 0.5) * 255).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu().numpy()
