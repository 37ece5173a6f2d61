"""A small MLP that denoises a position's values by themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.unified.blocks import TimeEmbedding
from omniloom.models.unified.density.base import DensityHead
from omniloom.models.unified.density.config import DiffusionHeadConfig, HeadShape
from omniloom.models.unified.flow_head import ModulatedLayer, modulated


class DiffusionHead(DensityHead):
    """MAR's (arXiv 2406.11838, section 3.2 and 4.2): a residual MLP of a position's noisy values, modulated by its
    hidden state and the time (adaLN). `models.unified.diffusion` says what its predictions are of."""

    def __init__(self, config: DiffusionHeadConfig, shape: HeadShape, eps: float):
        super().__init__(shape, eps, config.width)
        self.eps = eps
        self.time = TimeEmbedding(shape.time_dim, config.width)
        self.values = nn.Linear(shape.channels, config.width)
        self.layers = nn.ModuleList(ModulatedLayer(config.width, eps) for _ in range(config.layers))
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, shape.channels)

    @property
    def starts_at_zero(self) -> tuple[nn.Linear, ...]:
        return self.modulation, self.out

    def forward(self, hidden: Tensor, values: Tensor, times: Tensor) -> Tensor:
        """hidden (A, D), noisy values (A, T, C), times (A, T) in [0, 1] -> predictions (A, T, C)."""
        with torch.autocast(hidden.device.type, enabled=False):
            condition = F.silu(self.conditioned(hidden)[:, None] + self.time(times))
            x = self.values(values.to(self.values.weight.dtype))
            for layer in self.layers:
                x = layer(x, condition)
            scale, shift = self.modulation(condition).chunk(2, dim=-1)
            return self.out(modulated(x, scale, shift, self.eps))
