"""The base of all quantizers, and what several share: the use of codes, gradients past a code.

In: z (..., input_dim), channels last, any float dtype; all arithmetic here is float32.
Out: `Quantized`. Whatever a quantizer knows lies in parameters and buffers, so a state_dict restores it
whole; both stay float32 when the model is cast to bf16 (an average with decay 0.99 cannot live in bf16, and
a rounded codebook would give other codes). Under torch.distributed the statistics are summed over ranks, and
first codes and restarts are drawn from the latents of all, so that every rank holds the same codebook, which
does not depend on how the batch is divided: all ranks must ask for an update in the same steps. What is random
comes from the examples' generators (`models.tokenizer.draws`), or from one that a saved counter seeds.
Errors: `ValueError` for codes out of range, or asked of a quantizer that has none.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.tokenizer.precision import KeepsFloat32

# Entries of the token-by-code table held in memory while searching: on a CPU what its caches hold (2^23 takes twice
# the time), on a GPU few launches.
SCORES_AT_ONCE = {"cpu": 2**21, "cuda": 2**26}
DEFAULT_PATIENCE = 16.0  # mean uses; what counts as dead where nothing is ever restarted


class Quantized(NamedTuple):
    """A quantizer's output for z (..., input_dim).

    z_q: (..., dim) float32, what the decoder reads; in training, gradients reach z through it.
    codes: (...) int64 in [0, size), or None.
    latents: (..., dim) float32, the continuous vectors that were quantised: `snap(latents)` gives the vectors
        of `codes`. Of Gumbel-softmax: the vectors of `codes` themselves. Of KL: the posterior's mean.
    loss: float32 scalar, already weighted.
    stats: detached float32 scalars. Where there are codes: `codebook_usage` (share of the codes used in this
        batch, [0, 1]), `perplexity` (of this batch, [1, size]) and `dead_codes` (how many went unused while
        the average code was used `restart_dead_after` times; before any restart that follows). In an update
        the batch is that of all ranks. Each kind adds its own.
    """

    z_q: Tensor
    codes: Tensor | None
    latents: Tensor
    loss: Tensor
    stats: dict[str, Tensor]


class Quantizer(KeepsFloat32):
    """The interface. `input_dim` channels come in, `dim` go out, `size` codes (None: continuous).

    mean_square: about E|z_q|^2 of a fresh model, from which the decoder sets its input scale.
    """

    input_dim: int
    dim: int
    size: int | None
    mean_square: float

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        """Quantise z; `update` lets a module in training mode adapt its codebook and counters to this batch."""
        raise NotImplementedError

    def decode_codes(self, codes: Tensor) -> Tensor:
        """(...) integers -> (..., dim) float32."""
        raise self._no_codes()

    def snap(self, latents: Tensor) -> Tensor:
        """Latents (..., dim), given or generated -> the nearest vectors that the decoder was trained on."""
        return latents.float()

    def _no_codes(self) -> ValueError:
        return ValueError(f"{type(self).__name__} has no codes: decode its latents")

    def _check_codes(self, codes: Tensor) -> None:
        if self.size is None:
            raise self._no_codes()
        if codes.dtype.is_floating_point or codes.dtype == torch.bool:
            raise ValueError(f"codes: expected integers, got {codes.dtype}")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.size):
            found = f"{int(codes.min())} to {int(codes.max())}"
            raise ValueError(f"codes: expected values in [0, {self.size}), got {found}")


class DiscreteConfig(Protocol):
    """Properties of the config of a quantizer with codes."""

    @property
    def size(self) -> int: ...

    @property
    def restart_dead_after(self) -> float: ...


class DiscreteQuantizer(Quantizer):
    """A quantizer with codes: it keeps for each how many tokens went by since the code was last used.

    Buffers, saved and resumed: `idle_tokens` (size,) int64, the tokens of all ranks since the last use;
    `updates` () int64, how many batches were counted. Both change only in training and when asked.
    """

    size: int

    def __init__(self, config: DiscreteConfig) -> None:
        super().__init__()
        self.size = config.size
        self._patience = (config.restart_dead_after or DEFAULT_PATIENCE) * self.size
        self.register_buffer("idle_tokens", torch.zeros(self.size, dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def dead(self) -> Tensor:
        """(size,) bool: codes unused while the average code was used `restart_dead_after` times."""
        return self.idle_tokens > self._patience

    def _use(self, codes: Tensor, finite: Tensor, update: bool) -> dict[str, Tensor]:
        """Stats of a batch's codes (...), of which only those where `finite` (...) count; counted for good
        where `update`."""
        counts = count_codes(codes, self.size, finite)
        if update and self.training:
            counts = sum_over_ranks(counts)
            self._count(counts)
        return self._stats(counts)

    @torch.no_grad()
    def _count(self, counts: Tensor) -> None:
        """Take note of a batch's uses per code (size,), summed over ranks."""
        self.idle_tokens.add_(counts.sum().long()).masked_fill_(counts > 0, 0)
        self.updates.add_(1)

    def _stats(self, counts: Tensor) -> dict[str, Tensor]:
        return {**code_stats(counts), "dead_codes": self.dead().sum().float()}


def count_codes(codes: Tensor, size: int, finite: Tensor | None = None) -> Tensor:
    """Counts of each code, where `finite`: (...) int64, (...) bool -> (size,) float32."""
    flat = codes.flatten()  # bincount, or picking by a mask, would break a compiled graph
    ones = torch.ones_like(flat, dtype=torch.float32) if finite is None else finite.flatten().float()
    return torch.zeros(size, device=flat.device).index_add_(0, flat, ones)


def code_stats(counts: Tensor) -> dict[str, Tensor]:
    """Use of a codebook from counts per code (K,): share of codes used, and exp of their entropy."""
    share = counts / counts.sum().clamp(min=1.0)
    return {"codebook_usage": (counts > 0).float().mean(), "perplexity": entropy(share).exp()}


def nearest_code(x: Tensor, vectors: Tensor) -> Tensor:
    """Index of the nearest of `vectors` (K, d) for each of x (..., d), in bounded memory: (...) int64.

    |x - e|^2 = |x|^2 - 2 (x . e - |e|^2 / 2): the largest bracket wins.
    """
    x, vectors = x.detach(), vectors.detach()
    rows = max(1, SCORES_AT_ONCE.get(x.device.type, 2**23) // len(vectors))
    with torch.autocast(x.device.type, enabled=False):
        bias = -0.5 * vectors.square().sum(-1)
        parts = [torch.addmm(bias, part, vectors.T).argmax(-1) for part in x.flatten(0, -2).split(rows)]
    return torch.cat(parts).reshape(x.shape[:-1])


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


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """x itself, summed in place over the ranks."""
    if ranks() > 1:
        dist.all_reduce(x)
    return x


def share_of_all(count: int, like: Tensor) -> Tensor:
    """What a mean over this rank's `count` examples weighs in the mean over ranks: 1 where all have as many."""
    counts = sum_over_ranks(torch.tensor(float(count), device=like.device))
    return count * ranks() / counts


def mean_over_ranks(x: Tensor, count: int) -> Tensor:
    """The mean over all ranks' examples of x, a mean over the `count` of this rank's batch; all ranks must ask.

    Ranks average their gradients, so each carries that of its own part alone: together that is the gradient
    of the mean over all batches.
    """
    if ranks() == 1:
        return x
    everywhere = sum_over_ranks(x.detach() * share_of_all(count, x)) / ranks()
    return everywhere + x - x.detach()


def entropy(p: Tensor) -> Tensor:
    """Entropy of probabilities (n,), in nats; its gradient is finite where one is 0."""
    return -(p * p.clamp(min=1e-30).log()).sum()


def place_in_all(count: int, device: torch.device) -> tuple[int, int]:
    """(how many rows the ranks before this one have, how many all have), where this one has `count`."""
    if ranks() == 1:
        return 0, count
    counts = torch.zeros(ranks(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = count
    sum_over_ranks(counts)
    return int(counts[: dist.get_rank()].sum()), int(counts.sum())


def rows_of_all(rows: Tensor, chosen: Tensor, before: int) -> Tensor:
    """The `chosen` (n,) of all ranks' rows (..., d), numbered over the ranks, of which this one's begin at `before`:
    (n, d) on every rank."""
    if ranks() == 1:
        return rows[chosen]
    picked = rows.new_zeros(len(chosen), rows.shape[-1])
    mine = (chosen >= before) & (chosen < before + len(rows))
    picked[mine] = rows[chosen[mine] - before]
    return sum_over_ranks(picked)


def from_rank_zero(x: Tensor) -> Tensor:
    """x itself, overwritten by rank 0's."""
    if ranks() > 1:
        dist.broadcast(x, src=0)
    return x
