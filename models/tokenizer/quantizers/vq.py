"""Vector quantisation with a codebook on the unit sphere: what both ways of learning it share, and the one
by exponential moving averages (arXiv 1711.00937, appendix A.1). `vq_gradient` has the other.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.eager import eager
from omniloom.models.tokenizer.quantizers.base import (
    DiscreteQuantizer,
    Quantized,
    from_rank_zero,
    nearest_code,
    place_in_all,
    rotate_to,
    rows_of_all,
    straight_through,
    sum_over_ranks,
)
from omniloom.models.tokenizer.quantizers.config import VQConfig, VQGradientConfig

KMEANS_TOKENS_PER_CODE = 16


class SphericalCodebook(DiscreteQuantizer):
    """Codes on the unit sphere; latents are normalised, so the nearest code is the one of largest cosine.

    The published model normalises the latents alone; here the codes lie on the same sphere, which makes every
    latent's error bounded and the averages comparable. The codes start at k-means of the first batch, and
    dead ones are moved onto latents of the current batch. A kind says how codes are held (`codebook`,
    `_place`) and learned (`_learn`, `_codebook_loss`).
    """

    def __init__(self, config: VQConfig | VQGradientConfig) -> None:
        super().__init__(config)
        self.config = config
        self.input_dim = self.dim = config.latent_dim
        self.mean_square = 1.0
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def codebook(self) -> Tensor:
        """All codes: (size, dim) float32 of unit length."""
        raise NotImplementedError

    def _place(self, where: Tensor, codes: Tensor) -> None:
        """Put the codes (n, dim) where the mask (size,) with n true entries says."""
        raise NotImplementedError

    def _learn(self, sums: Tensor, counts: Tensor) -> None:
        """Learn from the sum (size, dim) and the number (size,) of the latents that each code won."""

    def _codebook_loss(self, latents: Tensor, q: Tensor) -> Tensor | float:
        """The part of the loss that trains the codes q (..., dim) of latents (..., dim)."""
        return 0.0

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            latents = F.normalize(z.float(), dim=-1)
            flat = latents.detach().flatten(0, -2)
            update = update and self.training
            if update:
                self._initialise(flat)
            vectors = self.codebook()
            codes = nearest_code(latents, vectors)
            q = vectors[codes]
            loss = self.config.commitment * F.mse_loss(latents, q.detach())
            if update:
                loss = loss + self._codebook_loss(latents.detach(), q)
            q = q.detach()
            z_q = rotate_to(latents, q) if self.config.rotation_trick else straight_through(latents, q)
            stats = self._update(flat, codes.flatten()) if update else self._use(codes, _finite(latents), False)
            return Quantized(z_q, codes, latents, loss, stats)

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return self.codebook()[codes.long()]

    def snap(self, latents: Tensor) -> Tensor:
        vectors = self.codebook()
        return vectors[nearest_code(F.normalize(latents.float(), dim=-1), vectors)]

    def _generator(self, device: torch.device) -> torch.Generator:
        # Seeded by a saved counter: a resumed run draws what the unbroken one drew.
        return torch.Generator(device).manual_seed(int(self.updates))

    def _draw(self, latents: Tensor, count: int) -> Tensor:
        """`count` of all ranks' latents, without repetition as long as there are enough; (count, dim)."""
        before, total = place_in_all(len(latents), latents.device)
        generator = self._generator(latents.device)
        order = torch.randperm(total, generator=generator, device=latents.device)
        rounds = math.ceil(count / total)
        picked = rows_of_all(latents, order.repeat(rounds)[:count], before)
        if rounds > 1:  # repeated latents would be one code twice
            noise = torch.randn(picked.shape, generator=generator, device=picked.device)
            picked = F.normalize(picked + 0.01 * noise, dim=-1)
        return picked

    def _kmeans(self, latents: Tensor, total: int) -> Tensor:
        """Spherical k-means of the `total` latents of all ranks, of which this one has (n, dim): (size, dim)."""
        centres = self._draw(latents, self.size)
        sample = self._draw(latents, min(total, KMEANS_TOKENS_PER_CODE * self.size))
        for _ in range(self.config.kmeans_iterations):
            sums = torch.zeros_like(centres).index_add_(0, nearest_code(sample, centres), sample)
            won = sums.norm(dim=-1, keepdim=True) > 1e-6
            centres = torch.where(won, F.normalize(sums, dim=-1), centres)
        return centres

    @eager
    @torch.no_grad()
    def _initialise(self, latents: Tensor) -> None:
        """Set the codebook from the first batch that holds a finite latent."""
        if bool(self.initialised):
            return
        latents = latents[_finite(latents)]
        _, total = place_in_all(len(latents), self.updates.device)
        if not total:
            return
        codes = self._kmeans(latents, total)
        self._place(torch.ones_like(self.idle_tokens, dtype=torch.bool), from_rank_zero(codes.contiguous()))
        self.initialised.fill_(True)

    @eager
    @torch.no_grad()
    def _update(self, latents: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Learn from latents (n, dim) and their codes (n,), then restart what is dead; stats over all ranks."""
        finite = _finite(latents)  # a NaN in one batch must not reach the codebook
        latents, codes = latents[finite], codes[finite]
        totals = torch.zeros(self.size, self.dim + 1, device=latents.device)
        totals = sum_over_ranks(totals.index_add_(0, codes, F.pad(latents, (0, 1), value=1.0)))
        sums, counts = totals[:, :-1], totals[:, -1]
        self._learn(sums, counts)
        self._count(counts)
        stats = self._stats(counts)
        self._restart(latents)
        return stats

    def _restart(self, latents: Tensor) -> None:
        """Move dead codes onto latents of the batch."""
        dead = self.dead()
        count = int(dead.sum())
        if not self.config.restart_dead_after or not count:
            return
        _, total = place_in_all(len(latents), latents.device)
        fresh = self._draw(latents, count) if total else self.codebook()[dead]
        self._place(dead, from_rank_zero(fresh.contiguous()))
        self.idle_tokens[dead] = 0


class VectorQuantizer(SphericalCodebook):
    """A code is the direction of the exponential moving sum of the latents it won; a code that won none in a
    batch keeps its sum, so pauses do not wash it out. Nothing here is learned by gradients."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        self.register_buffer("embeddings", F.normalize(torch.randn(self.size, self.dim), dim=-1))
        self.register_buffer("ema_sum", self.embeddings.clone())

    def codebook(self) -> Tensor:
        return self.embeddings

    def _place(self, where: Tensor, codes: Tensor) -> None:
        # A light sum follows the first latents that a restarted code wins, instead of averaging them away.
        weight = 1 - cast(VQConfig, self.config).ema_decay if bool(self.initialised) else 1.0
        self.embeddings[where] = codes
        self.ema_sum[where] = weight * codes

    def _learn(self, sums: Tensor, counts: Tensor) -> None:
        won = counts > 0
        decay = cast(VQConfig, self.config).ema_decay
        self.ema_sum[won] = decay * self.ema_sum[won] + (1 - decay) * sums[won]
        self.embeddings[won] = F.normalize(self.ema_sum[won], dim=-1)


def _finite(latents: Tensor) -> Tensor:
    return latents.isfinite().all(-1)
