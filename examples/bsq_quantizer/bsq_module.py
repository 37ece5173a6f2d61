"""What `bsq_quantizer` computes (arXiv 2406.07548, section 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from bsq_quantizer import BSQConfig
from torch import Tensor

from omniloom.models.tokenizer.quantizers.base import (
    DiscreteQuantizer,
    Quantized,
    mean_over_ranks,
    straight_through,
)


class BinarySphericalQuantizer(DiscreteQuantizer):
    """A code is the signs of the latents u, which are projected onto the unit sphere: c = sign(u) / sqrt(L), of unit
    length too. Code index = sum of bits, the first channel's bit counting ones.

    loss = entropy_weight * (E[H(q)] - entropy_gamma * H(E[q])) + commitment * E|u - sg(c)|^2, with q(c | u)
    proportional to exp(tau c.u) over all 2^L codes, tau the inverse temperature. That is a product over channels,
    P(bit d is 1) = sigmoid(2 tau u_d / sqrt(L)), so that H(q) is the sum of theirs; H(E[q]) is taken as the sum of the
    entropies of the channels' means, which bounds it from above. Nothing here holds 2^L numbers a token.
    """

    def __init__(self, config: BSQConfig) -> None:
        super().__init__(config)
        self.config = config
        self.input_dim = self.dim = config.dim
        self.mean_square = 1.0
        self.register_buffer("steps", 2 ** torch.arange(self.dim), persistent=False)

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            latents = F.normalize(z.float(), dim=-1)
            update = update and self.training
            vectors = self.snap(latents)
            codes = ((vectors > 0).long() * self.steps).sum(-1)
            sure, spread = self.entropies(latents, over_ranks=update)
            loss = self.config.entropy_weight * (sure - self.config.entropy_gamma * spread)
            loss = loss + self.config.commitment * (latents - vectors).square().sum(-1).mean()
            stats = self._use(codes, latents.isfinite().all(-1), update)
            stats |= {"entropy_per_token": sure.detach(), "entropy_of_mean": spread.detach()}
            return Quantized(straight_through(latents, vectors), codes, latents, loss, stats)

    def entropies(self, latents: Tensor, over_ranks: bool = False) -> tuple[Tensor, Tensor]:
        """E[H(q)] and the bound of H(E[q]) in nats, both in [0, L log 2], of latents (..., L) on the sphere.

        over_ranks: take E[q] over the batches of all ranks, which must all ask.
        """
        logits = 2.0 * self.config.inverse_temperature / math.sqrt(self.dim) * latents.flatten(0, -2)
        bit = logits.sigmoid()
        mean = bit.mean(0)
        if over_ranks:
            mean = mean_over_ranks(mean, len(bit))
        return _binary_entropy(bit).sum(-1).mean(), _binary_entropy(mean).sum()

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return (2.0 * (codes.long().unsqueeze(-1) // self.steps % 2) - 1.0) / math.sqrt(self.dim)

    def snap(self, latents: Tensor) -> Tensor:
        return torch.where(latents > 0, 1.0, -1.0) / math.sqrt(self.dim)


def _binary_entropy(p: Tensor) -> Tensor:
    """Of bits that are 1 with probability p, in nats; its gradient is finite where p is 0 or 1."""
    return -(p * p.clamp(min=1e-30).log() + (1 - p) * (1 - p).clamp(min=1e-30).log())
