"""Sequence parallelism: ranks that share out the places of each row (DeepSpeed-Ulysses, arXiv 2309.14509).

In: a whole `Batch`, which every rank of a group has, and the group. Out: this rank's share of it, and an attention that
sees whole rows. Of N ranks each has ceil(L / N) consecutive places of every row and does there all that is done place
by place: embeddings, norms, matrix products, heads and losses. Attention alone looks at other places: for it the ranks
exchange places for heads, so that each attends over whole rows under the whole mask with an Nth of the heads, and back.
What is small stays whole on every rank: ids, mask and positions, and the values and the noise of pictures; so do unets,
whose convolutions cross from place to place.

A rank's loss is the sum over its own targets: losses and gradients of a group add up to those of one rank that has
the rows alone.

Shapes: N ranks; B rows, L places of a row, n = ceil(L / N) of them on a rank; D width, H heads; M visual positions of
a representation, m of them here; A predictions, a of them here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.unified.attention import Attend, repeated
from omniloom.models.unified.batch.tensors import IGNORE, Batch, Here


class SequenceGroup(Protocol):
    """`size` ranks that have the same rows; this one is number `rank` of them."""

    rank: int
    size: int

    def all_to_all(self, x: Tensor) -> Tensor:
        """(size, ...), whose part j goes to rank j -> (size, ...), whose part j came from rank j. Differentiable; every
        rank of the group must call it, with the same shape."""
        ...


@dataclass(frozen=True)
class UlyssesAttention:
    """An `Attend` for this rank's places, around one for whole rows of `length` places.

    The heads of queries must divide by the number of ranks. Those of keys and values are repeated until they do, which
    sends more and changes nothing.
    """

    whole: Attend
    group: SequenceGroup
    length: int

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, H, n, head_dim), k and v (B, kv_heads, n, head_dim) -> (B, H, n, head_dim)."""
        N, n = self.group.size, q.shape[2]
        k, v = (repeated(x, math.lcm(x.shape[1], N)) for x in (k, v))
        by_rank = torch.cat([x.unflatten(1, (N, -1)) for x in (q, k, v)], dim=2)  # (B, N, a rank's heads, n, head_dim)
        received = self.group.all_to_all(by_rank.transpose(0, 1).contiguous())
        rows = received.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.length]
        out = self.whole(*rows.split([x.shape[1] // N for x in (q, k, v)], dim=1))
        out = F.pad(out, (0, 0, 0, N * n - self.length)).unflatten(2, (N, n))
        return self.group.all_to_all(out.permute(2, 0, 1, 3, 4).contiguous()).transpose(0, 1).flatten(1, 2)


class RowShare:
    """This rank's places of `rows` rows of `length` places; the last rank's are padded. On a GPU `mine` and what calls
    it wait for the device."""

    def __init__(self, group: SequenceGroup, rows: int, length: int):
        self.group, self.rows, self.length = group, rows, length
        self.count = -(-length // group.size)  # n
        self.first = group.rank * self.count

    def attention(self, whole: Attend) -> Attend:
        return UlyssesAttention(whole, self.group, self.length)

    def mine(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Of flat places b*L + l, int64 (A,), which are here, int64 (a,), and as which flat places b*n + i."""
        row, place = places // self.length, places % self.length - self.first
        which = ((place >= 0) & (place < self.count)).nonzero()[:, 0]
        return which, (row * self.count + place).index_select(0, which)

    def cut(self, x: Tensor, padding: float) -> Tensor:
        """(B, L, ...) -> this rank's (B, n, ...)."""
        missing = self.count * self.group.size - self.length
        return F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing), value=padding).narrow(1, self.first, self.count)

    def gathered(self, x: Tensor) -> Tensor:
        """(B*n, ...) of this rank's places -> (B*L, ...) of all, on every rank."""
        everywhere = self.group.all_to_all(x.expand(self.group.size, *x.shape).contiguous())
        rows = everywhere.unflatten(1, (self.rows, self.count)).transpose(0, 1).flatten(1, 2)
        return rows[:, : self.length].flatten(0, 1)

    def of(self, batch: Batch) -> Batch:
        """The batch with this rank's ids, positions and labels; `start`, `end`, `plan`, `tasks` and all counts are
        those of whole rows, and the parts say which of their positions are here."""
        which, index = self.mine(batch.label_index)
        weights = batch.label_weights
        parts = {name: replace(part, here=Here(*self.mine(part.index))) for name, part in batch.parts.items()}
        return replace(
            batch,
            ids=self.cut(batch.ids, 0),
            labels=self.cut(batch.labels, IGNORE),
            label_index=index,
            label_weights=None if weights is None else weights.index_select(0, which),
            positions=self.cut(batch.positions, 0.0),
            parts=parts,
        )
