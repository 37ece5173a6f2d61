"""Norms that compute in float32 and give back the type that came in, on every device.

Autocast's own lists differ: CUDA's keeps layer, group and RMS norms in float32 and hands float32 on, CPU's lists none
of them. Left to the lists, a GPU would carry the residual stream of the tokenizers and queries and keys in float32
(twice the memory, and a cast in front of each product) where a CPU has bf16. The statistics need float32, which every
kernel used here has inside; the result does not, because a product in bf16 comes next.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from omniloom.models.fused import rms_norm


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
