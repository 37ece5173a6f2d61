"""Lookup-free quantisation: one bit a channel, no codebook (arXiv 2310.05737, section 3.1), and on the unit sphere
(arXiv 2406.07548)."""

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
from omniloom.models.tokenizer.quantizers.config import BSQConfig, LFQConfig
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

    side = 1.0  # a channel of a code is this or less this

    def __init__(self, config: LFQConfig | BSQConfig) -> None:
        super().__init__(config)
        self.config = config
        self.input_dim = self.dim = config.dim
        self.mean_square = float(self.dim)
        self.register_buffer("steps", 2 ** torch.arange(self.dim), persistent=False)

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            latents = self._project(z.float())
            update = update and self.training
            vectors = self.snap(latents)
            codes = ((vectors > 0).long() * self.steps).sum(-1)
            finite = latents.isfinite().all(-1)
            sure, spread = self.entropies(latents, over_ranks=update)
            loss = self.config.entropy_weight * (sure - self.config.entropy_gamma * spread)
            loss = loss + self.config.commitment * self._distance(latents, vectors)
            stats = self._use(codes, finite, update)
            stats |= {"entropy_per_token": sure.detach(), "entropy_of_mean": spread.detach()}
            return Quantized(straight_through(latents, vectors), codes, latents, loss, stats)

    def entropies(self, latents: Tensor, over_ranks: bool = False) -> tuple[Tensor, Tensor]:
        """E[H(p)] and H(E[p]) in nats, both in [0, dim * log 2], of latents (..., dim).

        over_ranks: take E[p] over the batches of all ranks, which must all ask.
        """
        logits = self._logits(latents.flatten(0, -2))
        sure = (F.softplus(logits) - logits * logits.sigmoid()).sum(-1).mean()
        bits = torch.stack((F.logsigmoid(-logits), F.logsigmoid(logits)), dim=-1).unbind(-2)
        group, spread = self._group(), logits.new_zeros(())
        for first in range(0, self.dim, group):
            mean = mean_joint(bits[first : first + group])
            spread = spread + entropy(mean_over_ranks(mean, len(logits)) if over_ranks else mean)
        return sure, spread

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return (2.0 * (codes.long().unsqueeze(-1) // self.steps % 2) - 1.0) * self.side

    def snap(self, latents: Tensor) -> Tensor:
        return torch.where(latents > 0, self.side, -self.side)

    def _project(self, z: Tensor) -> Tensor:
        """z (..., dim) -> what is quantised."""
        return z

    def _distance(self, latents: Tensor, vectors: Tensor) -> Tensor:
        """What the commitment weighs: the mean square a channel."""
        return F.mse_loss(latents, vectors)

    def _logits(self, latents: Tensor) -> Tensor:
        """log P(bit is 1) - log P(bit is 0), a bit a channel."""
        assert isinstance(self.config, LFQConfig)
        return 4.0 * latents / self.config.entropy_temperature

    def _group(self) -> int:
        """Bits whose joint distribution the entropy of the mean is of."""
        return self.dim


class BinarySphericalQuantizer(LookupFreeQuantizer):
    """BSQ (arXiv 2406.07548, section 4): latents u are projected onto the unit sphere, and a code is their signs there,
    c = sign(u) / sqrt(L), of length 1 too, so that |u - c| is bounded, by less than sqrt(2 - 2 / sqrt(L)).

    As LFQ, but for: p(c) is proportional to exp(tau c.u), tau the inverse temperature, so that P(bit is 1) =
    sigmoid(2 tau u / sqrt(L)); the commitment is E|u - sg(c)|^2, summed over channels; and H(E[p]) is taken by groups
    of `group_size` bits, whose entropies are added: an upper bound, equal where the groups are independent over tokens
    and where one group holds all bits. It costs 2^group_size numbers in place of 2^L.
    """

    config: BSQConfig

    def __init__(self, config: BSQConfig) -> None:
        super().__init__(config)
        self.side = self.dim**-0.5
        self.mean_square = 1.0

    def _project(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1)

    def _distance(self, latents: Tensor, vectors: Tensor) -> Tensor:
        return (latents - vectors).square().sum(-1).mean()

    def _logits(self, latents: Tensor) -> Tensor:
        return 2.0 * self.config.inverse_temperature * self.side * latents

    def _group(self) -> int:
        return self.config.group_size
