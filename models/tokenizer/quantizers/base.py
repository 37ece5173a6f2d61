"""What every quantizer is, and what several of them share: statistics of codes, gradients past a code.

In: z (..., input_dim), channels last, any float dtype; all arithmetic here is float32.
Out: `Quantized`. Whatever a quantizer knows lies in parameters and buffers, so a state_dict restores it
whole; its float buffers stay float32 when the model is cast to bf16 (an average with decay 0.99 cannot live
in bf16). Under torch.distributed the statistics are summed over ranks, and first codes and restarts come from
rank 0, so that every rank holds the same codebook: all ranks must ask for an update in the same steps.
Errors: `ValueError` for codes out of range, or asked of a quantizer that has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


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


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def from_rank_zero(x: Tensor) -> Tensor:
    if ranks() > 1:
        dist.broadcast(x, src=0)
    return x
