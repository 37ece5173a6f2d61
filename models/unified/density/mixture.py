"""A mixture of normals of diagonal covariance."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.unified.density.base import MIN_SCALE, LikelihoodHead, normal_log_prob
from omniloom.models.unified.density.config import HeadShape, MixtureConfig


class MixtureHead(LikelihoodHead):
    """sum_k pi_k N(x; mean_k, diag(scale_k^2)), all of them given by one Linear (GIVT, arXiv 2312.02116, section 3.2).
    A temperature scales the normals' variances and leaves their weights, as there."""

    def __init__(self, config: MixtureConfig, shape: HeadShape, eps: float):
        super().__init__(shape, eps, config.outputs(shape.channels))
        self.components, self.channels = config.components, shape.channels

    def reset(self) -> None:
        """Means apart: alike, all components would be moved alike for ever."""
        nn.init.normal_(self.condition.bias[self.components : self.components * (1 + self.channels)])

    def _parts(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (..., K), means and scales (..., K, C)."""
        logits, rest = self.conditioned(hidden).split([self.components, 2 * self.components * self.channels], dim=-1)
        means, raw = rest.unflatten(-1, (2, self.components, self.channels)).unbind(-3)
        return logits.log_softmax(-1), means, MIN_SCALE + F.softplus(raw)

    def log_prob(self, hidden: Tensor, values: Tensor) -> Tensor:
        log_weights, means, scales = self._parts(hidden)
        return torch.logsumexp(
            log_weights + normal_log_prob((values[..., None, :] - means) / scales, scales.log()), dim=-1
        )

    def sample(self, hidden: Tensor, normals: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        log_weights, means, scales = self._parts(hidden)
        below = log_weights.exp().cumsum(-1) <= uniforms[..., :1]
        chosen = below.sum(-1).clamp(max=self.components - 1)[..., None, None]
        means, scales = (
            a.expand(*chosen.shape[:-2], *a.shape[-2:]).gather(-2, chosen.expand(*chosen.shape[:-1], self.channels))
            for a in (means, scales)
        )
        return means[..., 0, :] + math.sqrt(temperature) * scales[..., 0, :] * normals
