"""Gradients under ZeRO stage 1, in one buffer a group: reduced over the ranks, measured and clipped without the host;
and what the other stages need so that a step sees its own alone.

DeepSpeed copies each gradient three times on its way to the optimizer, measures them one by one and waits for the norm
on the host. Here a parameter's gradient is moved, as soon as the backward pass has it and while it is in the caches, to
its place in its group's flat buffer, where later passes of the step add to it: then a sum over ranks, a norm and a
product of this rank's shards, by which the optimizer steps all groups at once.

DeepSpeed keeps this rank's share of the weights twice, for optimizers whose numbers are wider than the module's. Here
both are fp32: the optimizer steps the module's own, and a copy of the share less is held and made a step. What else
DeepSpeed keeps (flat weights, shards of the optimizer's state) stays its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from omniloom.infra.training.exchange import gather_shards, sum_shards
from omniloom.infra.training.muon import FlatMatrices, Muon


@torch.no_grad()
def clear(optimizer: Any) -> None:
    """Forget the last step's gradients in DeepSpeed's own reduction, before a step's first backward pass.

    It writes over them by parameter, so that what has no gradient in a step (the head of an objective that no row
    has) would be updated, and counted in the norm, by that of an earlier one.
    """
    held = [getattr(optimizer, "grad_partitions_flat_buffer", None)]
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):  # stage 3; 1 and 2, with offload
        held += [weights.grad for weights in getattr(optimizer, name, ())]
    held += getattr(optimizer, "accumulated_grads_in_cpu", {}).values()
    for gradients in held:
        if gradients is not None:
            gradients.zero_()
    getattr(optimizer, "norm_for_param_grads", {}).clear()


def complete(optimizer: Any) -> None:
    """After the last of several backward passes of a step, with offload: hand over also what had a gradient in an
    earlier pass alone, which DeepSpeed leaves out."""
    optimizer.finalize_gradient_accumulation_boundary()


class FlatGradients:
    """Of the parameters of DeepSpeed's ZeRO-1 `optimizer`, whose engine leaves the reduction to us."""

    def __init__(self, optimizer: Any, communication: torch.dtype):
        self.optimizer, self.communication = optimizer, communication
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.flat = [torch.zeros_like(weights) for weights in optimizer.bit16_groups_flat]
        self.shards = [flat.chunk(self.ranks)[self.rank] for flat in self.flat]
        self._views: dict[torch.nn.Parameter, Tensor] = {}
        self._shares: dict[torch.nn.Parameter, Tensor] = {}
        self._parts: list[list[Tensor]] = []  # by group the shares of its parameters
        for flat, shard, weights, parameters in zip(
            self.flat, self.shards, optimizer.bit16_groups_flat, optimizer.bit16_groups, strict=True
        ):
            parts = [part for p in parameters if (part := self._place(p, flat, shard, weights)) is not None]
            self._parts.append(parts or [shard.new_zeros(1)])
        self._norm = torch.empty(0)
        self._begun = False
        for own, copies in zip(
            optimizer.single_partition_of_fp32_groups, optimizer.parallel_partitioned_bit16_groups, strict=True
        ):
            own.data = copies[self.rank]
        optimizer._link_all_hp_params()  # where parameters lie in it
        optimizer.step = self._step  # in place of DeepSpeed's
        if isinstance(optimizer.optimizer, Muon):
            optimizer.optimizer.layout = self._layout()

    def _place(self, parameter: torch.nn.Parameter, flat: Tensor, shard: Tensor, weights: Tensor) -> Tensor | None:
        """Give a parameter's gradient its place in its group's buffer; gives what this rank's shard holds of it."""
        first, count = parameter.data.storage_offset() - weights.storage_offset(), parameter.numel()
        self._views[parameter] = flat[first : first + count].view_as(parameter)
        parameter.register_post_accumulate_grad_hook(self._take)
        begin, end = (min(max(0, at - self.rank * len(shard)), len(shard)) for at in (first, first + count))
        if begin == end:
            return None
        self._shares[parameter] = shard[begin:end]
        return self._shares[parameter]

    def _layout(self) -> dict[int, FlatMatrices]:
        """Where the parameters of groups for Muon lie."""
        found = {}
        for number, (flat, shard) in enumerate(zip(self.flat, self.shards, strict=True)):
            if "momentum" not in self.optimizer.param_groups[number]:
                continue
            places = []
            for parameter in self.optimizer.bit16_groups[number]:
                if (share := self._shares.get(parameter)) is not None:
                    matrix = self._views[parameter]
                    begin, within = (share.storage_offset() - of.storage_offset() for of in (shard, matrix))
                    places.append((matrix, slice(within, within + len(share)), slice(begin, begin + len(share))))
            found[number] = FlatMatrices(flat, places)
        return found

    def _take(self, parameter: torch.nn.Parameter) -> None:
        """Move a gradient that the first backward pass of a step has made; later ones add to it where it is."""
        made = parameter.grad
        if made is not None and made is not (view := self._views[parameter]):
            parameter.grad = view.copy_(made)

    def begin(self) -> None:
        """Forget the last step's gradients; nothing before the backward passes that follow a step's first."""
        if not self._begun:
            for parameter in self._views:
                parameter.grad = None
        self._begun = True

    def reduce(self) -> Tensor:
        """Make this rank's shards those of the mean over the ranks. Gives the norm of the whole gradient, on the
        device. Every rank must call it."""
        if without := [view for parameter, view in self._views.items() if parameter.grad is None]:
            torch._foreach_zero_(without)
        if self.ranks > 1:
            sum_shards(self.flat, self.communication)
            torch._foreach_mul_(self.shards, 1 / self.ranks)
        # In DeepSpeed's order of additions, so that a training goes on under stage 2 bit for bit.
        squares = torch.stack([torch.stack(torch._foreach_norm(parts)).square().sum() for parts in self._parts])
        if self.ranks > 1:
            dist.all_reduce(squares)
        self._norm = torch.linalg.vector_norm(squares.sqrt())
        return self._norm

    def share(self, parameter: torch.nn.Parameter) -> Tensor | None:
        """What this rank's shard holds of a parameter's gradient, flat."""
        return self._shares.get(parameter)

    def clip(self, most: float) -> None:
        """Let the optimizer step by the reduced shards, with a norm of `most` at most where that is above 0."""
        if most:
            torch._foreach_mul_(self.shards, 1 / ((self._norm + 1e-6) / most).clamp(min=1.0))
        self._begun = False

    @torch.no_grad()
    def _step(self) -> None:
        """The optimizer's step of this rank's shards, and the weights of all."""
        own = self.optimizer.single_partition_of_fp32_groups
        for weights, shard in zip(own, self.shards, strict=True):
            weights.grad = shard
        self.optimizer.optimizer.step()
        for weights in own:
            weights.grad = None
        if self.ranks > 1:
            gather_shards(self.optimizer.bit16_groups_flat)
