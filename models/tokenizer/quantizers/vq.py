"""Vector quantisation with a codebook on the unit sphere, kept by exponential moving averages."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from models.tokenizer.quantizers.base import (
    Quantized,
    Quantizer,
    code_stats,
    count_codes,
    from_rank_zero,
    ranks,
    rotate_to,
    straight_through,
)
from models.tokenizer.quantizers.config import QuantizerConfig

SCORES_AT_ONCE = 2**23  # entries of the token-by-code table held in memory while searching
KMEANS_TOKENS_PER_CODE = 16


class VectorQuantizer(Quantizer):
    """Codes on the unit sphere; latents are normalised, so the nearest code is the one of largest cosine.

    The published model normalises the latents alone; here the codes lie on the same sphere, which makes every
    latent's error bounded and the averages comparable. A code is the direction of the exponential moving sum
    of the latents it won; a code that won none in a batch keeps its sum, so pauses do not wash it out.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.input_dim = self.dim = config.latent_dim
        self.size = config.codebook_size
        self.mean_square = 1.0
        self.register_buffer("embeddings", F.normalize(torch.randn(self.size, self.dim), dim=-1))
        self.register_buffer("ema_sum", self.embeddings.clone())
        self.register_buffer("idle_tokens", torch.zeros(self.size, dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            latents = F.normalize(z.float(), dim=-1)
            update = update and self.training
            if update:
                self._initialise(latents.detach().flatten(0, -2))
            codes = self.nearest(latents)
            q = self.embeddings[codes]
            loss = self.config.commitment * F.mse_loss(latents, q)
            z_q = rotate_to(latents, q) if self.config.rotation_trick else straight_through(latents, q)
            counts = count_codes(codes, self.size)
            if update:
                counts = self._update(latents.detach().flatten(0, -2), codes.flatten())
            dead = self._dead().float().sum()
            return Quantized(z_q, codes, latents, loss, {**code_stats(counts), "dead_codes": dead})

    def nearest(self, latents: Tensor) -> Tensor:
        """Index of the code of largest cosine: (..., dim) -> (...) int64."""
        flat = latents.detach().flatten(0, -2)
        rows = max(1, SCORES_AT_ONCE // self.size)
        parts = [(part @ self.embeddings.T).argmax(-1) for part in flat.split(rows)]
        return torch.cat(parts).reshape(latents.shape[:-1])

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return self.embeddings[codes.long()]

    def snap(self, latents: Tensor) -> Tensor:
        return self.embeddings[self.nearest(F.normalize(latents.float(), dim=-1))]

    def _generator(self, device: torch.device) -> torch.Generator:
        # Seeded by a saved counter: a resumed run draws what the unbroken one drew.
        return torch.Generator(device).manual_seed(int(self.updates))

    def _draw(self, latents: Tensor, count: int) -> Tensor:
        """`count` latents, without repetition as long as there are enough; (count, dim)."""
        generator = self._generator(latents.device)
        order = torch.randperm(len(latents), generator=generator, device=latents.device)
        rounds = math.ceil(count / len(latents))
        picked = latents[order.repeat(rounds)[:count]]
        if rounds > 1:  # repeated latents would be one code twice
            noise = torch.randn(picked.shape, generator=generator, device=picked.device)
            picked = F.normalize(picked + 0.01 * noise, dim=-1)
        return picked

    @torch.compiler.disable
    @torch.no_grad()
    def _initialise(self, latents: Tensor) -> None:
        """Set the codebook from the first batch of rank 0, by spherical k-means."""
        latents = latents[latents.isfinite().all(-1)]
        if bool(self.initialised) or not len(latents):
            return
        self.embeddings.copy_(self._draw(latents, self.size))
        sample = self._draw(latents, min(len(latents), KMEANS_TOKENS_PER_CODE * self.size))
        for _ in range(self.config.kmeans_iterations):
            sums = torch.zeros_like(self.embeddings).index_add_(0, self.nearest(sample), sample)
            won = sums.norm(dim=-1, keepdim=True) > 1e-6
            self.embeddings.copy_(torch.where(won, F.normalize(sums, dim=-1), self.embeddings))
        from_rank_zero(self.embeddings)
        self.ema_sum.copy_(self.embeddings)
        self.initialised.fill_(True)

    @torch.compiler.disable
    @torch.no_grad()
    def _update(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Move the codes towards the latents they won; returns the counts (K,) over all ranks."""
        finite = latents.isfinite().all(-1)  # a NaN in one batch must not reach the codebook
        latents, codes = latents[finite], codes[finite]
        totals = torch.zeros(self.size, self.dim + 1, device=latents.device)
        totals.index_add_(0, codes, F.pad(latents, (0, 1), value=1.0))
        if ranks() > 1:
            dist.all_reduce(totals)
        sums, counts = totals[:, :-1], totals[:, -1]
        won = counts > 0
        decay = self.config.ema_decay
        self.ema_sum[won] = decay * self.ema_sum[won] + (1 - decay) * sums[won]
        self.embeddings[won] = F.normalize(self.ema_sum[won], dim=-1)
        self.idle_tokens += int(counts.sum())
        self.idle_tokens[won] = 0
        self._restart(latents)
        self.updates += 1
        return counts

    def _dead(self) -> Tensor:
        """(K,) bool: codes unused while the average code was used `restart_dead_after` times."""
        patience = self.config.restart_dead_after or 16.0
        return self.idle_tokens > patience * self.size

    def _restart(self, latents: Tensor) -> None:
        """Move dead codes onto latents of rank 0's batch."""
        dead = self._dead()
        count = int(dead.sum())
        if not self.config.restart_dead_after or not count:
            return
        empty = len(latents) == 0  # only where rank 0's batch held no finite latent
        fresh = self.embeddings[dead].clone() if empty else self._draw(latents, count)
        fresh = from_rank_zero(fresh.contiguous())
        self.embeddings[dead] = fresh
        # A light sum follows the first latents that the code wins, instead of averaging them away.
        self.ema_sum[dead] = fresh * (1 - self.config.ema_decay)
        self.idle_tokens[dead] = 0
