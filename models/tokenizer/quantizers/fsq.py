"""Finite scalar quantisation: no codebook, a few levels a channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.tokenizer.quantizers.base import DiscreteQuantizer, Quantized, straight_through
from models.tokenizer.quantizers.config import QuantizerConfig

FSQ_GAIN = 0.2
FSQ_SOFT_LIMIT = 1.5


class FiniteScalarQuantizer(DiscreteQuantizer):
    """Rounds each bounded channel to a few levels (arXiv 2309.15505, section 3.1); nothing is learned.

    Latents lie in about [-1, 1] a channel; code index = sum of digits, the first channel's digit counting
    ones. Against the paper, two guards keep the tanh out of saturation, where its gradient is gone and only
    the outer levels are used (without them digits at 32x32 came down to 8 of 512 codes within 100 steps): z
    is scaled by FSQ_GAIN, so that an optimizer's step moves it less, and `commitment` weighs the mean square
    of what lies beyond FSQ_SOFT_LIMIT.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config)
        self.input_dim = self.dim = len(config.fsq_levels)
        self.mean_square = self.dim / 3  # of a uniform variable on [-1, 1]
        self.commitment = config.commitment
        levels = torch.tensor(config.fsq_levels, dtype=torch.float32)
        steps = torch.cat((torch.ones(1), levels[:-1].cumprod(0)))
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("steps", steps.long(), persistent=False)

    def _digits(self, scaled: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(scaled.round(), -(self.levels // 2)), (self.levels - 1) // 2)

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            half = (self.levels - 1) * (1 - 1e-3) / 2
            offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
            z = FSQ_GAIN * z.float()
            bounded = torch.tanh(z + torch.atanh(offset / half)) * half - offset
            latents = bounded / (self.levels // 2)
            digits = self._digits(bounded.detach())
            codes = self._codes(digits)
            stats = self._use(codes, bounded.isfinite().all(-1), update)
            z_q = straight_through(latents, digits / (self.levels // 2))
            loss = self.commitment * F.relu(z.abs() - FSQ_SOFT_LIMIT).square().mean()
            return Quantized(z_q, codes, latents, loss, stats)

    def _codes(self, digits: Tensor) -> Tensor:
        return ((digits + self.levels // 2).nan_to_num().long() * self.steps).sum(-1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        digits = codes.long().unsqueeze(-1) // self.steps % self.levels.long()
        return digits / (self.levels // 2) - 1.0

    def snap(self, latents: Tensor) -> Tensor:
        return self._digits(latents.float() * (self.levels // 2)) / (self.levels // 2)
