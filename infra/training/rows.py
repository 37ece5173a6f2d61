"""Rows that every rank has computed, on all of them, with gradients: for a loss in which each row meets those of all
ranks, and which every rank computes whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from omniloom.infra.training.shards import ranks


def all_rows(mine: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, in their order, of which rank r has `counts[r]`. Every rank must call it.

    The gradient of a rank's rows is the sum over the ranks of what each has of them. Where all compute the same loss
    that is as often the loss's own as there are ranks, which the mean that an engine takes over ranks makes right.
    """
    return mine if ranks()[1] == 1 else _AllRows.apply(mine, tuple(counts))


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        padded = mine.new_zeros(max(counts), *mine.shape[1:])  # collectives take equal parts
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        summed, rank = grad.contiguous(), dist.get_rank()
        dist.all_reduce(summed)
        start = sum(ctx.counts[:rank])
        return summed[start : start + ctx.counts[rank]], None
