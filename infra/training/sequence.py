"""Groups of ranks that share out the places of each row (sequence parallelism), and what they send each other.

Ranks side by side form a group, so that one lies within a machine where its size divides the machine's ranks. The
exchange is DeepSpeed-Ulysses' (`deepspeed.sequence.layer`): an operator with a gradient, which a compiler takes for one
node. Across groups a training is data-parallel; each rank gives a share of its rows' gradient, so that the engine's
mean over all ranks is what it is without groups.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from omniloom.infra.training.accelerated import import_deepspeed
from omniloom.infra.training.shards import ranks


class SequenceGroup:
    """This rank's group of `size` ranks, of which it is number `rank`. Every rank must make one at the same time;
    ValueError where `size` does not divide their number."""

    def __init__(self, size: int):
        rank, count = ranks()
        if count % size:
            raise ValueError(f"sequence_parallel: {size} does not divide the {count} workers that there are")
        deepspeed = import_deepspeed()
        from deepspeed.sequence.layer import register_all_to_all_group

        deepspeed.init_distributed(dist.get_backend(), dist_init_required=False, verbose=False)
        self.rank, self.size = rank % size, size
        groups = [dist.new_group(list(range(first, first + size))) for first in range(0, count, size)]
        self._group = groups[rank // size]
        self._name = register_all_to_all_group(self._group)

    def all_to_all(self, x: Tensor) -> Tensor:
        """(size, ...), whose part j goes to rank j -> (size, ...), whose part j came from rank j. Every rank of the
        group must call it, with the same shape; differentiable."""
        return torch.ops.deepspeed.dim_zero_all_to_all(x.contiguous(), self._name)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Make each tensor the sum over the group, in place. Every rank of it must call it."""
        for tensor in tensors:
            dist.all_reduce(tensor, group=self._group)
