"""ZeRO-3's division of a module that rank 0 alone has in memory: no other rank ever holds a copy of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.no_grad()
def divide(module: nn.Module, device: torch.device) -> None:
    """Give every rank its part of rank 0's parameters, one at a time; on other ranks they may be without memory
    (torch's meta device). Every rank must call it, before optimizers know the parameters."""
    import deepspeed

    init: Any = deepspeed.zero.Init(module=nn.Module(), dtype=torch.float32)
    made: dict[int, nn.Parameter] = {}  # a parameter under two names stays one
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if id(parameter) not in made:
                made[id(parameter)] = held = _in_memory(parameter, device)
                init._convert_to_zero_parameters([held])
            part._parameters[name] = made[id(parameter)]
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.is_meta:
                raise ValueError(f"{name}: a buffer without memory cannot be divided")


def _in_memory(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """The parameter, or an empty one in its place where it has no memory."""
    if not parameter.is_meta:
        return parameter
    return nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=parameter.requires_grad)
