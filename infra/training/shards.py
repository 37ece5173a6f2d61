"""What a rank holds of an engine's state, by parameter: the pieces that a checkpoint is made of.

    weight/NAME       fp32 weights, as the optimizer has them
    STATE/NAME        what the optimizer keeps for each number (exp_avg, exp_avg_sq); `step` is one number
    ema/NAME          the moving average
    fixed/NAME        parameters that are not trained, unless `frozen_from` says what they are read from
    buffer/NAME       buffers

A piece is a range of the flat tensor. Which ranges a rank holds depends on the ZeRO stage and the number of ranks, what
a range stands for does not: so a training goes on under any other of both. Together the ranks hold every number once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from omniloom.infra.training.average import MovingAverage
from omniloom.infra.training.config import EngineConfig


class Held(Protocol):
    """What is asked of an engine here: DeepSpeed's `engine`, and the moving average, where one is kept."""

    engine: Any
    config: EngineConfig
    average: MovingAverage | None
    frozen_from: str | None

    @property
    def module(self) -> torch.nn.Module: ...


@dataclass(frozen=True)
class Shard:
    """`values` are this rank's numbers of the tensor `key` from the flat index `start` on: flat, the memory itself."""

    key: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


@dataclass(frozen=True)
class Part:
    """What this rank's optimizer holds of a trained parameter: `count` numbers from the flat index `start` on, which
    lie in its tensor `flat` from `offset` on."""

    name: str
    parameter: torch.nn.Parameter
    shape: tuple[int, ...]
    start: int
    count: int
    flat: Tensor
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """The same numbers of a tensor that is laid out as `flat` is."""
        return flat.detach().view(-1).narrow(0, self.offset, self.count)

    @property
    def weights(self) -> Tensor:
        return self.of(self.flat)


def ranks() -> tuple[int, int]:
    """(this rank, how many there are)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in their order. Every rank must call it."""
    size = ranks()[1]
    if size == 1:
        return [value]
    values = [None] * size
    dist.all_gather_object(values, value)
    return values


def parts(engine: Held) -> list[Part]:
    """What this rank holds of the trained parameters, in the module's order; none of those that lie on others."""
    found = []
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad and (part := _part(name, parameter, engine.engine.optimizer)):
            found.append(part)
    return found


def _part(name: str, parameter: Any, optimizer: Any) -> Part | None:
    if hasattr(parameter, "ds_tensor"):  # stage 3: of each parameter a partition, the last ones padded
        group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = ranks()[0] * size
        count = min(size, parameter.ds_numel - start)
        flat = optimizer.fp32_partitioned_groups_flat[group]
        return Part(name, parameter, tuple(parameter.ds_shape), start, count, flat, offset) if count > 0 else None
    if not hasattr(parameter, "_hp_mapping"):
        return Part(name, parameter, tuple(parameter.shape), 0, parameter.numel(), parameter, 0)
    # stages 1 and 2: a range of each group's parameters, one behind the other
    if (mapping := parameter._hp_mapping) is None:
        return None
    place, within = mapping.lp_fragment_address, mapping.hp_fragment_address
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    return Part(name, parameter, tuple(parameter.shape), place.start, place.numel, flat, within.start)


def optimizer_state(engine: Held) -> dict[Tensor, dict[str, Any]]:
    """State of the innermost optimizer by the tensor that it steps."""
    optimizer = engine.engine.optimizer
    return getattr(optimizer, "optimizer", optimizer).state


def shards(engine: Held) -> Iterator[Shard]:
    """This rank's share of all that a checkpoint keeps: each number of the engine is given by one rank."""
    state, average = optimizer_state(engine), engine.average
    for part in parts(engine):
        yield from _shares(engine, f"weight/{part.name}", part, part.weights)
        if average is not None:
            yield from _shares(engine, f"ema/{part.name}", part, part.of(average.of(part.flat)))
        for kind, value in sorted(state.get(part.flat, {}).items()):
            if is_element_wise(kind, value, part.flat):
                yield from _shares(engine, f"{kind}/{part.name}", part, part.of(value))
            elif part.start == 0 and (engine.config.zero_stage or ranks()[0] == 0):
                yield Shard(f"{kind}/{part.name}", (), 0, as_number(value))
    yield from _fixed(engine)


def _shares(engine: Held, key: str, part: Part, values: Tensor) -> Iterator[Shard]:
    """The part as it is; without ZeRO, where each rank holds all, this rank's share of it."""
    start = 0
    if not engine.config.zero_stage:
        start, stop = share(part.count)
        values = values[start:stop]
    if len(values):
        yield Shard(key, part.shape, part.start + start, values)


def share(count: int) -> tuple[int, int]:
    """(start, stop) of this rank's share of so many numbers."""
    rank, size = ranks()
    return count * rank // size, count * (rank + 1) // size


def is_element_wise(kind: str, value: Any, flat: Tensor) -> bool:
    """Whether an optimizer's state has a number for each of the tensor that it steps."""
    return kind != "step" and torch.is_tensor(value) and value.shape == flat.shape


def as_number(value: Any) -> Tensor:
    """A scalar of an optimizer's state as a flat tensor; ValueError where it is none."""
    if torch.is_tensor(value) and value.numel() == 1:
        return value.detach().reshape(1).clone()
    if isinstance(value, bool | int | float):
        return torch.tensor([value], dtype=torch.float64 if isinstance(value, float) else torch.int64)
    raise ValueError(f"an optimizer's state of the type {type(value).__name__} cannot be kept by parameter")


def _fixed(engine: Held) -> Iterator[Shard]:
    """What no optimizer holds: buffers change in forward passes, so that the copy is taken now."""
    for key, shape, start, values, is_whole in kept_tensors(engine):
        if is_whole:
            first, last = share(len(values))
            start, values = first, values[first:last]
        if len(values):
            yield Shard(key, shape, start, values.clone() if key.startswith("buffer/") else values)


def kept_tensors(engine: Held) -> Iterator[tuple[str, tuple[int, ...], int, Tensor, bool]]:
    """Those of `fixed_tensors` that a checkpoint holds."""
    for found in fixed_tensors(engine):
        if engine.frozen_from is None or not found[0].startswith("fixed/"):
            yield found


def fixed_tensors(engine: Held) -> Iterator[tuple[str, tuple[int, ...], int, Tensor, bool]]:
    """(key, shape, start, this rank's numbers, whether these are all) of frozen parameters and kept buffers."""
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            continue
        held: Any = parameter
        if (partition := getattr(held, "ds_tensor", None)) is None:
            yield f"fixed/{name}", tuple(held.shape), 0, held.detach().view(-1), True
            continue
        start = ranks()[0] * partition.numel()
        count = max(0, min(partition.numel(), held.ds_numel - start))
        yield f"fixed/{name}", tuple(held.ds_shape), start, partition.detach().view(-1)[:count], False
    kept = engine.module.state_dict(keep_vars=True)
    for name, buffer in engine.module.named_buffers():
        if name in kept:
            yield f"buffer/{name}", tuple(buffer.shape), 0, buffer.detach().view(-1), True
