"""What ranks tell each other in a step under ZeRO stage 1: shards of gradients are summed, shards of weights gathered.
In: flat buffers of equal length on all ranks, of which chunk r belongs to rank r. Every rank must call, alike.

On GPUs these are NCCL's reduce-scatter and all-gather. Under gloo, whose own of both copy more than they send, chunks
go from rank to rank as they lie; all buffers together, so that a step waits once for each of the two.

Gradients may travel with fewer bits than they are added up in: each rank is sent every other rank's copy of its own
shard and sums them itself, as a collective's own additions would round one after the other. bf16 halves what a rank
sends; but a ring's reduce-scatter crosses from machine to machine once for all GPUs of one, this once for each, so that
it pays within a machine and may not between many.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def sum_shards(flats: Sequence[Tensor], communication: torch.dtype) -> None:
    """Make this rank's chunk of each the sum over the ranks; the other chunks are not kept."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if flats[0].is_cuda and communication == flats[0].dtype:
        for flat in flats:
            dist.reduce_scatter_single(flat.chunk(ranks)[rank], flat)
        return
    sent = [flat.to(communication).chunk(ranks) for flat in flats]
    received = [chunks[0].new_empty((ranks - 1, len(chunks[0]))) for chunks in sent]
    others = [other for other in range(ranks) if other != rank]
    _swap(
        [(other, chunks[other]) for chunks in sent for other in others],
        [(other, place) for places in received for other, place in zip(others, places, strict=True)],
    )
    for flat, places in zip(flats, received, strict=True):
        shard = flat.chunk(ranks)[rank]
        for place in places:
            shard.add_(place)


def gather_shards(flats: Sequence[Tensor]) -> None:
    """Make each whole: chunk r is that of rank r."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if flats[0].is_cuda:
        for flat in flats:
            dist.all_gather_into_tensor(flat, flat.chunk(ranks)[rank])
        return
    chunks = [flat.chunk(ranks) for flat in flats]
    others = [other for other in range(ranks) if other != rank]
    _swap(
        [(other, own[rank]) for own in chunks for other in others],
        [(other, own[other]) for own in chunks for other in others],
    )


def _swap(sent: Sequence[tuple[int, Tensor]], received: Sequence[tuple[int, Tensor]]) -> None:
    """Send tensors to ranks and receive others, which lie in the same order between each two."""
    tasks = [dist.P2POp(dist.irecv, place, other) for other, place in received]
    tasks += [dist.P2POp(dist.isend, chunk, other) for other, chunk in sent]
    for task in dist.batch_isend_irecv(tasks):
        task.wait()
