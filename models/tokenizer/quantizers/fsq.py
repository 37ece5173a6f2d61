"""Finite scalar quantisation: no codebook, a few levels a channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.tokenizer.quantizers.base import DiscreteQuantizer, Quantized, mean_over_ranks, straight_through
from models.tokenizer.quantizers.config import QuantizerConfig

FSQ_SOFT_LIMIT = 1.5


class FiniteScalarQuantizer(DiscreteQuantizer):
    """Rounds each bounded channel to a few levels (arXiv 2309.15505, section 3.1); nothing is learned.

    Latents lie in about [-1, 1] a channel; code index = sum of digits, the first channel's digit counting
    ones. The paper has no loss of its own; two guards here keep the codes in use from the first hundred steps
    on. `commitment` weighs the mean square of what lies beyond FSQ_SOFT_LIMIT, where the tanh has no gradient
    left. `fsq_balance` weighs |E[w]|^2 + |E[w w^T] - I|^2 over tokens, w the quantised vectors in units in
    which equal use of all codes has mean 0 and covariance I.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.input_dim = self.dim = len(config.fsq_levels)
        self.commitment, self.balance = config.commitment, config.fsq_balance
        levels = torch.tensor(config.fsq_levels, dtype=torch.float32)
        steps = torch.cat((torch.ones(1), levels[:-1].cumprod(0)))
        mean = ((levels - 1) / 2 - levels // 2) / (levels // 2)  # of equal use of all levels
        std = ((levels.square() - 1) / 12).sqrt() / (levels // 2)
        self.mean_square = sum((mean.square() + std.square()).tolist())
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("steps", steps.long(), persistent=False)
        self.register_buffer("uniform_mean", mean, persistent=False)
        self.register_buffer("uniform_std", std, persistent=False)

    def _digits(self, scaled: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(scaled.round(), -(self.levels // 2)), (self.levels - 1) // 2)

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            half = (self.levels - 1) * (1 - 1e-3) / 2
            offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
            z = z.float()
            update = update and self.training
            bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
            latents = bounded / (self.levels // 2)
            digits = self._digits(bounded.detach())
            codes = self._codes(digits)
            z_q = straight_through(latents, digits / (self.levels // 2))
            imbalance = self.imbalance(z_q, over_ranks=update)
            loss = self.commitment * F.relu(z.abs() - FSQ_SOFT_LIMIT).square().mean() + self.balance * imbalance
            stats = self._use(codes, bounded.isfinite().all(-1), update) | {"imbalance": imbalance.detach()}
            return Quantized(z_q, codes, latents, loss, stats)

    def imbalance(self, z_q: Tensor, over_ranks: bool = False) -> Tensor:
        """How far mean and covariance of z_q (..., dim) are from those of equal use of all codes: (), at least 0.

        over_ranks: take them over the batches of all ranks, which must all ask.
        """
        w = ((z_q - self.uniform_mean) / self.uniform_std).flatten(0, -2)
        moments = torch.cat((w.mean(0, keepdim=True), w.T @ w / len(w)))
        mean, covariance = (mean_over_ranks(moments) if over_ranks else moments).tensor_split((1,))
        return mean.square().sum() + (covariance - torch.eye(self.dim, device=w.device)).square().sum()

    def _codes(self, digits: Tensor) -> Tensor:
        return ((digits + self.levels // 2).nan_to_num().long() * self.steps).sum(-1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        digits = codes.long().unsqueeze(-1) // self.steps % self.levels.long()
        return digits / (self.levels // 2) - 1.0

    def snap(self, latents: Tensor) -> Tensor:
        return self._digits(latents.float() * (self.levels // 2)) / (self.levels // 2)
