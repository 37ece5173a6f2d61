"""The continuous bottleneck: a Gaussian posterior under a KL penalty."""

from __future__ import annotations

import torch
from torch import Tensor

from models.tokenizer.quantizers.base import Quantized, Quantizer
from models.tokenizer.quantizers.config import QuantizerConfig


class GaussianBottleneck(Quantizer):
    """A diagonal Gaussian with a KL penalty (arXiv 1312.6114, eq. 10): samples in training, else its mean."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.dim = config.latent_dim
        self.input_dim = 2 * config.latent_dim
        self.size = None
        self.mean_square = float(self.dim)
        self.kl_weight = config.kl_weight

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            mean, log_variance = z.float().chunk(2, dim=-1)
            log_variance = log_variance.clamp(-30.0, 20.0)
            kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance)
            std = (0.5 * log_variance).exp()
            z_q = mean + std * torch.randn_like(std) if self.training else mean
            loss = self.kl_weight * kl.sum() / z.shape[0]
            stats = {"kl": kl.mean().detach(), "posterior_std": std.mean().detach()}
            return Quantized(z_q, None, mean, loss, stats)
