"""A Fourier series a channel, channel after channel."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.unified.density.base import MIN_SCALE, LikelihoodHead
from omniloom.models.unified.density.config import FourierConfig, HeadShape

_UNIFORM = 1e-4  # share of a uniform density under the series, which may have zeros
_HALVINGS = 30
_EDGE = 1 - 2**-20  # of the squashed line


class FourierHead(LikelihoodHead):
    """A channel's density on (-1, 1) is |sum_k a_k exp(i pi k z)|^2 / (2 sum_k |a_k|^2), k = 0..N: its Fourier
    coefficients c_n = sum_k a_(k+n) conj(a_k) make it non-negative and its integral known (arXiv 2402.15345, eq. 3-5).
    z = tanh((x - shift) / scale) takes the line there. The series of a channel knows the hidden state and the channels
    before it: channels of one position depend on each other, which independent series could not say. Under the series
    lies a uniform density of weight 1e-4, as it may have zeros. Drawing inverts the distribution function, which is
    closed, by bisection, channel after channel; it draws at temperature 1 alone."""

    def __init__(self, config: FourierConfig, shape: HeadShape, eps: float):
        super().__init__(shape, eps, config.width)
        self.frequencies, self.channels = config.frequencies, shape.channels
        self.places = nn.Embedding(shape.channels, config.width)
        self.values = nn.Embedding(shape.channels, config.width)
        self.inner, self.out = nn.Linear(config.width, config.width), nn.Linear(config.width, config.outputs)

    @property
    def starts_at_zero(self) -> tuple[nn.Linear, ...]:
        return (self.out,)

    def _series(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(..., W) -> roots, real and imaginary (..., N + 1), shift and scale (...)."""
        out = self.out(F.silu(self.inner(F.silu(condition))))
        real, imaginary, rest = out.split([self.frequencies + 1, self.frequencies + 1, 2], dim=-1)
        real = torch.cat((1 + real[..., :1], real[..., 1:]), dim=-1)
        return real, imaginary, rest[..., 0], MIN_SCALE + F.softplus(rest[..., 1])

    def log_prob(self, hidden: Tensor, values: Tensor) -> Tensor:
        every = torch.arange(self.channels, device=values.device)
        told = values[..., None] * self.values(every)
        before = F.pad(told, (0, 0, 1, 0))[..., :-1, :].cumsum(-2)
        real, imaginary, shift, scale = self._series(
            self.conditioned(hidden)[..., None, :] + self.places(every) + before
        )
        y = (values - shift) / scale
        angles = math.pi * torch.tanh(y)[..., None] * self._numbers(0)
        cos, sin = angles.cos(), angles.sin()
        height = (real * cos - imaginary * sin).sum(-1).square() + (real * sin + imaginary * cos).sum(-1).square()
        total = real.square().sum(-1) + imaginary.square().sum(-1)
        density = ((1 - _UNIFORM) * height / total.clamp(min=1e-12) + _UNIFORM) / 2
        # log(1 - tanh(y)^2), of any y
        slope = 2 * (math.log(2) - y.abs() - F.softplus(-2 * y.abs()))
        return (density.log() + slope - scale.log()).sum(-1)

    def sample(self, hidden: Tensor, normals: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        if temperature != 1:
            raise ValueError(f"temperature: the head fourier draws at 1 alone, got {temperature}")
        condition, drawn = self.conditioned(hidden), []
        for channel in torch.arange(self.channels, device=hidden.device):
            series = self._series(condition + self.places(channel))
            z = self._inverted(series[0], series[1], uniforms[..., channel])
            value = series[2] + series[3] * torch.atanh(z)
            drawn.append(value)
            condition = condition + value[..., None] * self.values(channel)
        return torch.stack(drawn, dim=-1)

    def _numbers(self, first: int) -> Tensor:
        weight = self.out.weight
        return torch.arange(first, self.frequencies + 1, dtype=weight.dtype, device=weight.device)

    def _inverted(self, real: Tensor, imaginary: Tensor, uniforms: Tensor) -> Tensor:
        """z where the distribution function is `uniforms`."""
        n, size = self._numbers(1), self.frequencies + 1
        total = (real.square() + imaginary.square()).sum(-1, keepdim=True).clamp(min=1e-12)
        pairs = [
            (real[..., k:], imaginary[..., k:], real[..., : size - k], imaginary[..., : size - k])
            for k in range(1, size)
        ]
        cosine = torch.stack([(a * c + b * d).sum(-1) for a, b, c, d in pairs], dim=-1) / (total * math.pi * n)
        sine = torch.stack([(b * c - a * d).sum(-1) for a, b, c, d in pairs], dim=-1) / (total * math.pi * n)
        signs = (-1) ** n
        low, high = torch.full_like(uniforms, -_EDGE), torch.full_like(uniforms, _EDGE)
        for _ in range(_HALVINGS):
            z = (low + high) / 2
            angles = math.pi * n * z[..., None]
            # The integral of Re c_n exp(i pi n z) / c_0 from -1 to z.
            waves = (cosine * angles.sin() + sine * (angles.cos() - signs)).sum(-1)
            below = (z + 1) / 2 + (1 - _UNIFORM) * waves < uniforms
            low, high = torch.where(below, z, low), torch.where(below, high, z)
        return (low + high) / 2
