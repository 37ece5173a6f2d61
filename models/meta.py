"""Modules that are shapes alone. In: a function that builds one. Out: the module on PyTorch's meta device.

What its constructors would draw is left out: PyTorch draws for a tensor without memory through its compiler, whose
import takes longer than all else here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

T = TypeVar("T", bound=torch.nn.Module)


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def without_memory(build: Callable[..., T], *arguments: Any) -> T:
    """`build(*arguments)` on the meta device."""
    with torch.device("meta"), _Undrawn():
        return build(*arguments)
