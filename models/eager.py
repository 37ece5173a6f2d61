"""What stays eager inside a compiled module. In: a function. Out: the same, which a compiler breaks its graph around.

`torch.compiler.disable` imports the compiler (1.7 s of CPU) where it is applied, so in every process that imports a
module which applies it. Here that waits until something is compiled, which has imported it anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def eager(function: Callable) -> Callable:
    left_alone = torch._disable_dynamo(function)  # imports the compiler at the first call

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (left_alone if torch.compiler.is_compiling() else function)(*args, **kwargs)

    return run
