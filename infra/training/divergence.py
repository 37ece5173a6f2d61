"""Silent divergence: what every rank holds a copy of is compared by checksums, bit for bit.

A flipped bit in a weight, a rank with another build or a lost message changes one copy and no loss that a human would
notice. What ranks share out (ZeRO-3's weights, optimizer states) has no second copy to compare with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from omniloom.infra.training.engine import Engine

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


def first_difference(engines: Mapping[str, Engine]) -> str | None:
    """What differs between ranks, in words: "ENGINE's NAME"; None where nothing does. Every rank must call it, and all
    are told the same."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    named = [(f"{engine}'s {name}", tensor) for engine, held in engines.items() for name, tensor in _copies(held)]
    if not named:
        return None
    sums = torch.stack([checksum(tensor) for _, tensor in named])
    least, most = sums.clone(), sums
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    differing = (least != most).tolist()
    return next((name for (name, _), differs in zip(named, differing, strict=True) if differs), None)


def _copies(engine: Engine) -> Iterator[tuple[str, Tensor]]:
    """Weights that are whole on each rank, and kept buffers."""
    kept = engine.module.state_dict(keep_vars=True)
    for name, parameter in engine.module.named_parameters():
        if not hasattr(parameter, "ds_tensor"):
            yield name, parameter.detach()
    for name, buffer in engine.module.named_buffers():
        if name in kept:
            yield name, buffer.detach()


def checksum(tensor: Tensor) -> Tensor:
    """int64 scalar on the tensor's device: the sum of its numbers' bits, modulo 2^64. Another for any one bit."""
    flat = tensor.detach().reshape(-1)
    return flat.view(_WORDS[flat.element_size()]).sum(dtype=torch.int64)
