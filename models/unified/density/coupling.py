"""A normalizing flow of coupling layers, each of which knows the hidden state."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.unified.density.base import MIN_SCALE, LikelihoodHead, normal_log_prob
from omniloom.models.unified.density.config import CouplingConfig, HeadShape

_MOST_LOG_SCALE = 1.0  # of an affine layer


class _Coupling(nn.Module):
    """Shift, and where it is affine log-scale, of some channels by the others and the condition."""

    def __init__(self, seen: int, outputs: int, width: int):
        super().__init__()
        self.seen = nn.Linear(seen, width, bias=False)
        self.condition, self.inner, self.out = (nn.Linear(width, size) for size in (width, width, outputs))

    @property
    def starts_at_zero(self) -> tuple[nn.Linear, ...]:
        return (self.out,)

    def forward(self, seen: Tensor, condition: Tensor) -> Tensor:
        return self.out(F.silu(self.inner(F.silu(self.seen(seen) + self.condition(condition)))))


class CouplingHead(LikelihoodHead):
    """x = mean + scale * f(e) with e normal and f coupling layers: of two halves of the channels one stays, the other
    becomes x2 exp(s) + t, s and t of the first half and the hidden state (Real NVP, arXiv 1605.08803, eq. 7-8), s = 0
    where it is additive (NICE, arXiv 1410.8516, section 3.2); halves take turns. A temperature scales e's variance."""

    def __init__(self, config: CouplingConfig, shape: HeadShape, eps: float):
        super().__init__(shape, eps, config.width)
        self.first, self.is_affine = shape.channels // 2, config.coupling == "affine"
        self.affine = nn.Linear(config.width, 2 * shape.channels)
        self.layers = nn.ModuleList(
            _Coupling(seen, config.changes(changed), config.width) for seen, changed in config.halves(shape.channels)
        )

    @property
    def starts_at_zero(self) -> tuple[nn.Linear, ...]:
        return (self.affine,)

    def _affine(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.affine(condition).chunk(2, dim=-1)
        return mean, MIN_SCALE + F.softplus(raw)

    def _halves(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Those that the layer looks at, and those that it changes."""
        one, other = x[..., : self.first], x[..., self.first :]
        return (one, other) if layer % 2 == 0 else (other, one)

    def _joined(self, seen: Tensor, changed: Tensor, layer: int) -> Tensor:
        return torch.cat((seen, changed) if layer % 2 == 0 else (changed, seen), dim=-1)

    def _told(self, layer: int, seen: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log-scale."""
        out = self.layers[layer](seen, condition)
        if not self.is_affine:
            return out, torch.zeros_like(out)
        shift, raw = out.chunk(2, dim=-1)
        return shift, _MOST_LOG_SCALE * torch.tanh(raw / _MOST_LOG_SCALE)

    def normalized(self, hidden: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """e (..., C) of the values, and the log-determinant (...) of de/dx."""
        condition = F.silu(self.conditioned(hidden))
        mean, scale = self._affine(condition)
        x, log_determinant = (values - mean) / scale, -scale.log().sum(-1)
        for layer in range(len(self.layers)):
            seen, changed = self._halves(x, layer)
            shift, log_scale = self._told(layer, seen, condition)
            x = self._joined(seen, (changed - shift) * torch.exp(-log_scale), layer)
            log_determinant = log_determinant - log_scale.sum(-1)
        return x, log_determinant

    def generated(self, hidden: Tensor, e: Tensor) -> Tensor:
        """The inverse: x of e."""
        condition = F.silu(self.conditioned(hidden))
        for layer in reversed(range(len(self.layers))):
            seen, changed = self._halves(e, layer)
            shift, log_scale = self._told(layer, seen, condition)
            e = self._joined(seen, changed * torch.exp(log_scale) + shift, layer)
        mean, scale = self._affine(condition)
        return mean + scale * e

    def log_prob(self, hidden: Tensor, values: Tensor) -> Tensor:
        e, log_determinant = self.normalized(hidden, values)
        return normal_log_prob(e) + log_determinant

    def sample(self, hidden: Tensor, normals: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        return self.generated(hidden, math.sqrt(temperature) * normals)
