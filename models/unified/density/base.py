"""The base of the heads of objective `next_latent`. In: the hidden state of the position before, and a position's
values. Out: the log-density of the values in nats, or values drawn; of the diffusion head what it predicts of noisy
values.

    log_prob(hidden, values)                            (..., D), (..., C) -> (...)
    sample(hidden, normals, uniforms, temperature)      (..., D), (..., C), (..., C) -> (..., C)

Leading axes broadcast: one hidden state may be asked of several values. A head computes in the type of its weights,
also under an autocast: rounded to bf16, log-densities of many dimensions would be off by more than what is learnt.

Shapes, here and in the heads: A predictions, D channels of a hidden state, C of a value, W of a head's inside, K
components, N frequencies, T times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from omniloom.models.norms import RMSNorm
from omniloom.models.unified.density.config import HeadShape

# The least scale of a channel, in units of the latents' deviation. No density is higher a channel than that of a normal
# so narrow, but under a flow, whose affine layers may each narrow half of the channels by e more.
MIN_SCALE = 0.01


class DensityHead(nn.Module):
    """The base: a norm of the hidden state, and an MLP's first layer where the head has one."""

    def __init__(self, shape: HeadShape, eps: float, inner: int):
        super().__init__()
        self.norm, self.condition = RMSNorm(shape.width, eps), nn.Linear(shape.width, inner)

    def reset(self) -> None:
        """What `UnifiedModel.reset_parameters` does not set as the head needs it."""

    def conditioned(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., W)"""
        return self.condition(self.norm(hidden.to(self.condition.weight.dtype)))


class LikelihoodHead(DensityHead):
    """A head with exact likelihoods."""

    def forward(self, hidden: Tensor, values: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.log_prob(hidden, values)

    def log_prob(self, hidden: Tensor, values: Tensor) -> Tensor:
        """(..., D) and (..., C) -> nats (...)."""
        raise NotImplementedError

    def sample(self, hidden: Tensor, normals: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Values (..., C) of independent normal and uniform numbers (..., C), of which a head uses those it needs;
        `temperature` scales variances. ValueError for a temperature that a head does not draw at."""
        raise NotImplementedError


def normal_log_prob(z: Tensor, log_scale: Tensor | float = 0.0) -> Tensor:
    """Log-density of independent normals, summed over the last axis; z is in units of the scale."""
    return (-0.5 * z.square() - 0.5 * math.log(2 * math.pi) - log_scale).sum(-1)
