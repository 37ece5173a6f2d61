"""Lookup-free quantisation: one bit a channel, no codebook (arXiv 2310.05737, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.tokenizer.quantizers.base import (
    DiscreteQuantizer,
    Quantized,
    entropy,
    mean_over_ranks,
    straight_through,
)
from omniloom.models.tokenizer.quantizers.config import LFQConfig
from omniloom.models.tokenizer.quantizers.joint import mean_joint


class LookupFreeQuantizer(DiscreteQuantizer):
    """A code is the signs of the latents: code index = sum of bits, the first channel's bit counting ones.

    loss = entropy_weight * (E[H(p)] - entropy_gamma * H(E[p])) + commitment * E(z - sg(sign z))^2
    with p(c) proportional to exp(-|z - c|^2 / entropy_temperature) over all 2^dim codes c, in nats. The first
    term makes each token sure of its code, the second spreads the tokens over the codes.

    Neither term ever holds tokens x codes numbers, and both are exact at every size. The squared distance is a
    sum over channels, so p is a product over bits, with P(bit is 1) = sigmoid(4 z / temperature): its entropy
    is the sum of theirs, and `mean_joint` gives E[p] (2^18 codes take 1024 numbers a token).
    """

    def __init__(self, config: LFQConfig) -> None:
        super().__init__(config)
        self.config = config
        self.input_dim = self.dim = config.dim
        self.mean_square = float(self.dim)
        self.register_buffer("steps", 2 ** torch.arange(self.dim), persistent=False)

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            latents = z.float()
            update = update and self.training
            signs = self.snap(latents)
            codes = ((signs > 0).long() * self.steps).sum(-1)
            finite = latents.isfinite().all(-1)
            sure, spread = self.entropies(latents, over_ranks=update)
            commitment = F.mse_loss(latents, signs.detach())
            loss = self.config.entropy_weight * (sure - self.config.entropy_gamma * spread)
            loss = loss + self.config.commitment * commitment
            stats = self._use(codes, finite, update)
            stats |= {"entropy_per_token": sure.detach(), "entropy_of_mean": spread.detach()}
            return Quantized(straight_through(latents, signs), codes, latents, loss, stats)

    def entropies(self, latents: Tensor, over_ranks: bool = False) -> tuple[Tensor, Tensor]:
        """E[H(p)] and H(E[p]) in nats, both in [0, dim * log 2], of latents (..., dim).

        over_ranks: take E[p] over the batches of all ranks, which must all ask.
        """
        logits = 4.0 * latents.flatten(0, -2) / self.config.entropy_temperature
        sure = (F.softplus(logits) - logits * logits.sigmoid()).sum(-1).mean()
        bits = torch.stack((F.logsigmoid(-logits), F.logsigmoid(logits)), dim=-1)
        mean = mean_joint(bits.unbind(-2))
        return sure, entropy(mean_over_ranks(mean, len(logits)) if over_ranks else mean)

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return 2.0 * (codes.long().unsqueeze(-1) // self.steps % 2) - 1.0

    def snap(self, latents: Tensor) -> Tensor:
        return torch.where(latents > 0, 1.0, -1.0)
