"""The packed attention mask, defined once: one interval per row. In: where documents and visual segments lie
in a row. Out: (start, end), and what the backends of `models.unified.attention` need of it.

Position i sees [start_i, end_i): start_i is its document's first position, end_i the larger of i + 1 and the
end of its visual segment, of which with `UnifiedConfig.joins_frame` <boi> and <eoi> are part. So text is causal, a
visual segment sees itself in full, and documents never see each other. Padding sees itself alone, which keeps its
softmax finite and its content out of everything else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = 128  # positions; FlexAttention's block, and what a CPU's caches like


def intervals(
    length: int, documents: Iterable[tuple[int, int]], visuals: Iterable[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of one row from half-open spans. Returns (start, end), int64 (length,) each.

    documents  spans [begin, stop) of whole documents; what they leave out is padding
    visuals    spans [begin, stop) of places that see each other, each inside a document
    """
    end = np.arange(1, length + 1, dtype=np.int64)
    start = end - 1
    for begin, stop in documents:
        start[begin:stop] = begin
    for begin, stop in visuals:
        end[begin:stop] = stop
    return start, end


def dense_mask(start: Tensor, end: Tensor, keys: int | None = None) -> Tensor:
    """Boolean mask (B, 1, Q, K), True where query i sees key j, from start and end, int64 (B, Q).

    keys  K, the number of key positions; Q by default. A cache has more keys than queries.
    """
    j = torch.arange(start.shape[1] if keys is None else keys, device=start.device)
    return ((j >= start[..., None]) & (j < end[..., None]))[:, None]


@dataclass
class QueryBlocks:
    """Runs of queries with the keys that any of them sees, for `models.unified.attention.BlockAttend`.

    spans  int64 (M, 5), on the CPU: row, first query, stop, first key, stop. Padding is in none
    bias   float32 (A,): the additive masks (queries, keys) of the runs one after the other, 0 or -inf
    """

    spans: Tensor
    bias: Tensor


def query_blocks(start: np.ndarray, end: np.ndarray, documents: Iterable[tuple[int, int, int]]) -> QueryBlocks:
    """Cut each document (row, begin, stop) into runs of at most `BLOCK` queries. start, end: int64 (B, L)."""
    spans, bias = [], [np.empty(0, np.float32)]
    for row, begin, stop in documents:
        for first in range(begin, stop, BLOCK):
            last = min(first + BLOCK, stop)
            lo, hi = start[row, first:last], end[row, first:last]
            keys = np.arange(lo.min(), hi.max())
            seen = (keys >= lo[:, None]) & (keys < hi[:, None])
            spans.append((row, first, last, keys[0], keys[-1] + 1))
            bias.append(np.where(seen, np.float32(0), np.float32(-np.inf)).ravel())
    return QueryBlocks(torch.tensor(spans, dtype=torch.int64).view(-1, 5), torch.from_numpy(np.concatenate(bias)))


@dataclass
class BlockTables:
    """Which blocks of `BLOCK` keys each block of queries sees: what FlexAttention's BlockMask consists of. For each of
    `some` (the mask decides within the block) and `all` (every query sees every key), by queries and, for the backward
    pass, by keys: counts int32 (B, 1, N) and indices int32 (B, 1, N, N), N = ceil(L / BLOCK)."""

    some: tuple[Tensor, Tensor]
    all: tuple[Tensor, Tensor]
    some_by_keys: tuple[Tensor, Tensor]
    all_by_keys: tuple[Tensor, Tensor]


def block_tables(start: np.ndarray, end: np.ndarray) -> BlockTables:
    """From the extremes of each block of start, end, int64 (B, L): no function is traced over L^2."""
    B, L = start.shape
    N = -(-L // BLOCK)
    low, high = (np.full((2, B, N * BLOCK), fill, np.int64) for fill in (np.iinfo(np.int64).max, -1))
    for bound in (low, high):  # places beyond L count for neither extreme
        bound[0, :, :L], bound[1, :, :L] = start, end
    first, earliest_end = low.reshape(2, B, N, BLOCK).min(axis=-1)[..., None]
    last_start, last = high.reshape(2, B, N, BLOCK).max(axis=-1)[..., None]
    begins = np.arange(N) * BLOCK
    stops = np.minimum(begins + BLOCK, L)
    seen = (first < stops) & (last > begins)
    full = (last_start <= begins) & (earliest_end >= stops) & (stops - begins == BLOCK)

    def table(chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        # A stable sort puts the chosen blocks first, in their order.
        indices = np.argsort(~chosen, axis=-1, kind="stable").astype(np.int32)
        counts = chosen.sum(axis=-1, dtype=np.int32)
        return torch.from_numpy(counts)[:, None], torch.from_numpy(indices)[:, None]

    some, every = seen & ~full, seen & full
    return BlockTables(table(some), table(every), *(table(a.transpose(0, 2, 1)) for a in (some, every)))
