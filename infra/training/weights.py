"""What an engine holds, seen whole, without a second copy of it: EMA weights in place of the trained ones, a module
that all ranks evaluate together, and the weights one by one for export."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from omniloom.infra.training.average import MovingAverage
from omniloom.infra.training.config import EngineConfig
from omniloom.infra.training.shards import fixed_tensors, parts, ranks

_AT_ONCE = 1 << 24  # numbers of a tensor that ranks send together


class EngineWeights:
    """The part of `Engine` that reads and writes what it holds. `engine` is DeepSpeed's; `average` is this rank's part
    of the moving average, None where none is kept."""

    engine: Any
    config: EngineConfig
    device: torch.device
    average: MovingAverage | None
    frozen_from: str | None  # a digest of what frozen parameters were read from, where checkpoints leave them out
    _held: threading.Event | None = None  # set when a checkpoint has read what it keeps

    @property
    def module(self) -> torch.nn.Module:
        return self.engine.module

    @property
    def steps_in_host_memory(self) -> bool:
        """Whether an optimizer step changes what lies in host memory."""
        return self.device.type == "cpu" or (self.config.offload and self.config.zero_stage > 0)

    def hold(self, read: threading.Event) -> None:
        """Weights and optimizer states stay as they are until `read` is set: what changes them waits for it."""
        self._held = read

    def released(self) -> None:
        """Returns when nobody reads weights or optimizer states any more, and they may change."""
        if self._held is not None:
            self._held.wait()
            self._held = None

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The EMA weights in place of the trained ones inside the block (no change where none is kept). They change
        places, so that no copy is made; every rank must enter."""
        if self.average is None:
            yield
            return
        self.released()
        self.average.swap()
        self.spread()
        try:
            yield
        finally:
            self.average.swap()
            self.spread()

    @torch.no_grad()
    def spread(self) -> None:
        """Bring the optimizer's weights, of which each rank has its own, to the module's. Every rank must call it."""
        optimizer = self.engine.optimizer
        if self.config.zero_stage in (1, 2):
            optimizer.update_lp_params()
        elif self.config.zero_stage == 3:
            optimizer._partition_all_parameters()  # what is whole of the weights before
            for group in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            if kept_whole := optimizer.persistent_parameters:
                kept_whole[0].all_gather(kept_whole)

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[Any]:
        """The module with EMA weights where they are kept, for every rank to use; none may train inside. Under ZeRO-3
        weights are gathered as they are used: all ranks must run the same parts of it equally often, in `collective`
        code. Nothing compiled runs: what is evaluated has other shapes each time."""
        eager = torch.compiler.set_stance("force_eager") if self.config.compile else contextlib.nullcontext()
        with self.averaged(), eager, self._gathering():
            yield self.module

    @property
    def collective(self) -> bool:
        """Whether all ranks must take part where the module is used."""
        return self.config.zero_stage == 3 and ranks()[1] > 1

    @contextlib.contextmanager
    def _gathering(self) -> Iterator[None]:
        """ZeRO-3 gathers what is read outside of a module's forward too, as it does in the engine's forward pass."""
        if self.config.zero_stage != 3:
            yield
            return
        from deepspeed.runtime.zero.parameter_offload import ensure_zero_ordered_dict

        modules = list(self.module.modules())
        for module in modules:
            ensure_zero_ordered_dict(module)
            _told(module, in_forward=True)
        try:
            yield
        finally:
            for module in modules:
                _told(module, in_forward=False)
            self.engine.optimizer._partition_all_parameters()

    def tensors(self, average: bool = True, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor | None]]:
        """(name, tensor) of the module's state, or of these `names` in it: whole, one at a time, EMA where kept unless
        `average` is False, on the CPU of rank 0 in fp32, None on the others. Every rank must go through all of it."""
        held = {id(part.parameter): part for part in parts(self)}
        known = {id(p): name for name, p in self.module.named_parameters()}
        fixed = {key.partition("/")[2]: rest for key, _, *rest in fixed_tensors(self)}
        state = self.module.state_dict(keep_vars=True)
        for name in state if names is None else names:
            value = state[name]
            if not isinstance(value, torch.nn.Parameter):
                yield name, _plain(value) if ranks()[0] == 0 else None
                continue
            shape = tuple(getattr(value, "ds_shape", value.shape))
            start, mine, is_whole = 0, torch.empty(0, device=self.device), not self.config.zero_stage
            if part := held.get(id(value)):
                flat = self.average.of(part.flat) if average and self.average else part.flat
                start, mine = part.start, part.of(flat)
            elif not value.requires_grad:
                start, mine, is_whole = cast(tuple[int, Tensor, bool], tuple(fixed[known[id(value)]]))
            yield name, self._whole(shape, start, mine, is_whole)

    def _whole(self, shape: tuple[int, ...], start: int, mine: Tensor, is_whole: bool) -> Tensor | None:
        """The tensor of which each rank has the numbers from `start` on, or all of them, on rank 0's CPU."""
        rank, size = ranks()
        if size == 1 or is_whole:
            return _plain(mine).view(shape) if rank == 0 else None
        count = torch.Size(shape).numel()
        whole = torch.empty(count) if rank == 0 else None
        for at in range(0, count, _AT_ONCE):
            piece = torch.zeros(min(_AT_ONCE, count - at), device=self.device)
            low, high = max(at, start), min(at + len(piece), start + len(mine))
            if low < high:
                piece[low - at : high - at] = mine[low - start : high - start]
            dist.reduce(piece.view(torch.int32), 0)  # sums of bits, as all others are zero: exact
            if whole is not None:
                whole[at : at + len(piece)] = piece
        return whole if whole is None else whole.view(shape)

    def state_dict(self, average: bool = True) -> dict[str, Tensor]:
        """All of `tensors` at once, on rank 0; empty on the others. Every rank must call it."""
        return {name: value for name, value in self.tensors(average) if value is not None}


def _told(module: Any, in_forward: bool) -> None:
    """Tell DeepSpeed whether what is read of the module's parameters must be gathered."""
    module._parameters._in_forward = in_forward


def _plain(value: Tensor) -> Tensor:
    """A copy on the CPU, fp32 where it is a floating-point number."""
    kept = value.detach().clone() if value.device.type == "cpu" else value.detach().cpu()
    return kept.float() if kept.is_floating_point() else kept
