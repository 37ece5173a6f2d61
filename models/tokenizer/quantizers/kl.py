"""The continuous bottleneck: a Gaussian posterior under a KL penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from omniloom.models.tokenizer import draws
from omniloom.models.tokenizer.quantizers.base import Quantized, Quantizer
from omniloom.models.tokenizer.quantizers.config import GaussianConfig

LOG_VARIANCE_RANGE = (-30.0, 20.0)  # as published


class GaussianBottleneck(Quantizer):
    """A diagonal Gaussian with a KL penalty (arXiv 1312.6114, eq. 10): samples in training, else its mean.

    z holds the means and then the log-variances; the divergence is summed over an example's latents.
    """

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.dim = config.latent_dim
        self.input_dim = 2 * config.latent_dim
        self.size = None
        self.mean_square = float(self.dim)
        self.kl_weight = config.kl_weight

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            mean, log_variance = self.posterior(z)
            kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
            z_q = self.sample(z) if self.training else mean
            loss = self.kl_weight * kl.sum() / z.shape[0]
            stats = {"kl": kl.mean().detach(), "posterior_std": (0.5 * log_variance).exp().mean().detach()}
            return Quantized(z_q, None, mean, loss, stats)

    @staticmethod
    def posterior(prequant: Tensor) -> tuple[Tensor, Tensor]:
        """(..., 2 * dim) -> mean and log-variance, each (..., dim) float32, the latter clamped."""
        mean, log_variance = prequant.float().chunk(2, dim=-1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def sample(self, prequant: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw from the posterior: (..., 2 * dim), channels last -> (..., dim) float32. Noise comes from
        `generator` (of prequant's device), else from the examples' own (`models.tokenizer.draws`)."""
        mean, log_variance = self.posterior(prequant)
        noise = torch.empty_like(mean)
        noise = draws.normal(noise) if generator is None else noise.normal_(generator=generator)
        return mean + (0.5 * log_variance).exp() * noise
