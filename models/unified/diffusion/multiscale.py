"""The coarser scales of a diffusion loss (Simple Diffusion, arXiv 2301.11093, section 3.3). In: residuals of packed
rows and where their visual targets lie. Out: what the coarser scales add to the sum of the squared residuals.

High resolutions let the loss's many fine details outvote the picture's composition; on an average-pooled residual
they cancel, and what the composition lacks is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.unified.positions import Grid


def segment_coarse_error(residual: Tensor, scales: int) -> Tensor:
    """(n, t, h, w, C) -> (n,): the sum over p = 2, 4, ..., 2^(scales - 1) of p times the mean square of the residual
    averaged over p x p positions of a frame. p is the paper's weight of a scale, one over its side, relative to the
    full one's; windows at an edge average what there is. Scales coarser than the grid's longer side are left out.

    Positions are pooled channel by channel: pixel patches want their pixels spread out over h and w first.
    """
    n, t, h, w, _ = residual.shape
    frames = residual.flatten(0, 1).movedim(-1, 1)
    total = residual.new_zeros(n)
    for p in (2**level for level in range(1, scales)):
        if p // 2 >= max(h, w):
            break
        pooled = F.avg_pool2d(frames, p, ceil_mode=True, count_include_pad=False)
        total = total + p * pooled.square().flatten(1).mean(1).view(n, t).mean(1)
    return total


def coarse_error(residual: Tensor, grids: Sequence[Grid], scales: int, patch: int = 1) -> Tensor:
    """Scalar: over the targets, their number of positions times `segment_coarse_error`, so that it adds to the sum
    over positions of the mean over channels.

    residual  (K, C): the targets' positions one after the other
    grids     (t, h, w) of each target
    patch     p of pixel patches, C = p * p * 3 in the order row, column, colour: their pixels are spread out over
              the frame first. 1 of latents
    """
    by_grid: dict[Grid, list[Tensor]] = {}
    for grid, part in zip(grids, residual.split([t * h * w for t, h, w in grids])):
        by_grid.setdefault(grid, []).append(part)
    total = residual.new_zeros(())
    for (t, h, w), segments in by_grid.items():
        frames = torch.stack(segments).view(len(segments), t, h, w, -1)
        if patch > 1:
            frames = frames.view(-1, t, h, w, patch, patch, 3).transpose(3, 4).reshape(-1, t, h * patch, w * patch, 3)
        total = total + t * h * w * segment_coarse_error(frames, scales).sum()
    return total
