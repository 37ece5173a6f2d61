"""Quantizers behind one interface: VQ, FSQ and KL, chosen by `build_quantizer(config)`.

In: z (..., input_dim), channels last, any float dtype; all arithmetic here is float32.
Out: `Quantized`. Whatever a quantizer knows lies in parameters and buffers, so a state_dict restores it
whole; its float buffers stay float32 when the model is cast to bf16 (an average with decay 0.99 cannot live
in bf16). Under torch.distributed the statistics are summed over ranks, and first codes and restarts come from
rank 0, so that every rank holds the same codebook: all ranks must ask for an update in the same steps.
Errors: `ValueError` for codes out of range, or asked of a quantizer that has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.tokenizer.config import QuantizerConfig

SCORES_AT_ONCE = 2**23  # entries of the token-by-code table held in memory while searching
KMEANS_TOKENS_PER_CODE = 16
FSQ_GAIN = 0.2
FSQ_SOFT_LIMIT = 1.5


class Quantized(NamedTuple):
    """What a quantizer makes of z (..., input_dim).

    z_q: (..., dim) float32, what the decoder reads; gradients reach z through it.
    codes: (...) int64 in [0, size), or None.
    latents: (..., dim) float32, the continuous vectors that were quantised: `snap(latents)` gives the vectors
        of `codes`. Of KL: the posterior's mean.
    loss: float32 scalar, already weighted.
    stats: detached float32 scalars: `codebook_usage` (share of the codes used in this batch, [0, 1]) and
        `perplexity` where there are codes; `kl` and `posterior_std` for KL; `dead_codes` for VQ.
    """

    z_q: Tensor
    codes: Tensor | None
    latents: Tensor
    loss: Tensor
    stats: dict[str, Tensor]


class Quantizer(nn.Module):
    """The interface. `input_dim` channels come in, `dim` go out, `size` codes (None: continuous).

    mean_square: about E|z_q|^2 of a fresh model, from which the decoder sets its input scale.
    """

    input_dim: int
    dim: int
    size: int | None
    mean_square: float

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        """Quantise z; `update` lets a module in training mode adapt its codebook to this batch."""
        raise NotImplementedError

    def decode_codes(self, codes: Tensor) -> Tensor:
        """(...) integers -> (..., dim) float32."""
        raise ValueError(f"{type(self).__name__} has no codes: decode its latents")

    def snap(self, latents: Tensor) -> Tensor:
        """Latents (..., dim), given or generated -> the nearest vectors that the decoder was trained on."""
        return latents.float()

    def _check_codes(self, codes: Tensor) -> None:
        if codes.dtype.is_floating_point or codes.dtype == torch.bool:
            raise ValueError(f"codes: expected integers, got {codes.dtype}")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.size):
            found = f"{int(codes.min())} to {int(codes.max())}"
            raise ValueError(f"codes: expected values in [0, {self.size}), got {found}")

    def _apply(self, fn: Callable, recurse: bool = True) -> Quantizer:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that `config.kind` names."""
    kinds = {"vq": VectorQuantizer, "fsq": FiniteScalarQuantizer, "kl": GaussianBottleneck}
    return kinds[config.kind](config)


def count_codes(codes: Tensor, size: int) -> Tensor:
    """How often each code occurs: (...) int64 -> (size,) float32. (bincount would break a compiled graph.)"""
    flat = codes.flatten()
    ones = torch.ones_like(flat, dtype=torch.float32)
    return torch.zeros(size, device=flat.device).index_add_(0, flat, ones)


def code_stats(counts: Tensor) -> dict[str, Tensor]:
    """Use of a codebook from counts per code (K,): share of codes used, and exp of their entropy."""
    share = counts / counts.sum().clamp(min=1.0)
    entropy = -torch.xlogy(share, share).sum()
    return {"codebook_usage": (counts > 0).float().mean(), "perplexity": entropy.exp()}


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """q forward, z's gradient backward."""
    return z + (q - z).detach()


def rotate_to(z: Tensor, q: Tensor) -> Tensor:
    """q forward; the gradient reaches z through the rotation and scaling that carry z to q.

    z, q: (..., d). With unit vectors u of z and v of q and r = (u + v) / |u + v|, the transform is
    |q| / |z| * (I - 2 r r^T + 2 v u^T), a constant of the backward pass (arXiv 2410.06424).
    """
    z_norm = z.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    q_norm = q.norm(dim=-1, keepdim=True)
    u, v = (z / z_norm).detach(), F.normalize(q, dim=-1).detach()
    r = F.normalize(u + v, dim=-1)
    rotated = z - 2 * (z * r).sum(-1, keepdim=True) * r + 2 * (z * u).sum(-1, keepdim=True) * v
    return rotated * (q_norm / z_norm).detach()


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _from_rank_zero(x: Tensor) -> Tensor:
    if _ranks() > 1:
        dist.broadcast(x, src=0)
    return x


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
        _from_rank_zero(self.embeddings)
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
        if _ranks() > 1:
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
        fresh = _from_rank_zero(fresh.contiguous())
        self.embeddings[dead] = fresh
        # A light sum follows the first latents that the code wins, instead of averaging them away.
        self.ema_sum[dead] = fresh * (1 - self.config.ema_decay)
        self.idle_tokens[dead] = 0


class FiniteScalarQuantizer(Quantizer):
    """Rounds each bounded channel to a few levels (arXiv 2309.15505, section 3.1); nothing is learned.

    Latents lie in about [-1, 1] a channel; code index = sum of digits, the first channel's digit counting
    ones. Against the paper, two guards keep the tanh out of saturation, where its gradient is gone and only
    the outer levels are used (without them digits at 32x32 came down to 8 of 512 codes within 100 steps): z
    is scaled by FSQ_GAIN, so that an optimizer's step moves it less, and `commitment` weighs the mean square
    of what lies beyond FSQ_SOFT_LIMIT.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.input_dim = self.dim = len(config.fsq_levels)
        self.size = math.prod(config.fsq_levels)
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
            counts = count_codes(codes, self.size)
            z_q = straight_through(latents, digits / (self.levels // 2))
            loss = self.commitment * F.relu(z.abs() - FSQ_SOFT_LIMIT).square().mean()
            return Quantized(z_q, codes, latents, loss, code_stats(counts))

    def _codes(self, digits: Tensor) -> Tensor:
        return ((digits + self.levels // 2).nan_to_num().long() * self.steps).sum(-1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        digits = codes.long().unsqueeze(-1) // self.steps % self.levels.long()
        return digits / (self.levels // 2) - 1.0

    def snap(self, latents: Tensor) -> Tensor:
        return self._digits(latents.float() * (self.levels // 2)) / (self.levels // 2)


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
