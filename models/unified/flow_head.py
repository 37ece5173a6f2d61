"""The head of a diffusion that looks at the noisy values once more. In: hidden states of positions, the values that the
network was shown there, and their segments' times. Out: the prediction of each position.

A position's own residual MLP, modulated by its hidden state and the time (adaLN-Zero, arXiv 2212.09748): the backbone,
which nothing modulates, says what the picture is, and the head removes the noise. Tuna-2 (arXiv 2604.24763) puts a
modulated head behind its backbone; this one is MAR's (arXiv 2406.11838), whose positions do not attend.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.norms import rms_norm
from omniloom.models.unified.config import UnifiedConfig


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Without weights of its own, normed, then scaled and shifted by what a condition says (adaLN)."""
    return rms_norm(x, None, eps) * (1 + scale) + shift


class ModulatedLayer(nn.Module):
    """A residual MLP of two matrices, modulated by a condition; what it adds is gated, by 0 at the start."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.modulation = nn.Linear(dim, 3 * dim)
        self.inner = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    @property
    def starts_at_zero(self) -> tuple[nn.Linear, ...]:
        return (self.modulation,)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(condition).chunk(3, dim=-1)
        return x + gate * self.out(F.silu(self.inner(modulated(x, scale, shift, self.eps))))


class FlowHead(nn.Module):
    """hidden (M, features), values (M, channels), time (segments, width) and each position's segment, int64 (M,) ->
    (M, channels). 0 at the start, as a Linear in its place would give."""

    def __init__(self, features: int, channels: int, config: UnifiedConfig):
        super().__init__()
        dim, self.eps = config.flow_head_width, config.norm_eps
        self.values = nn.Linear(channels, dim)
        self.condition = nn.Linear(features, dim)
        self.time = nn.Linear(config.width, dim)
        self.layers = nn.ModuleList(ModulatedLayer(dim, config.norm_eps) for _ in range(config.flow_head_layers))
        self.modulation = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, channels)

    @property
    def starts_at_zero(self) -> tuple[nn.Linear, ...]:
        return self.modulation, self.out

    def forward(self, hidden: Tensor, values: Tensor, time: Tensor, segment: Tensor) -> Tensor:
        condition = F.silu(self.condition(hidden) + self.time(time).index_select(0, segment))
        x = self.values(values)
        for layer in self.layers:
            x = layer(x, condition)
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        return self.out(modulated(x, scale, shift, self.eps))
