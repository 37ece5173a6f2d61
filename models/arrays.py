"""numpy, or where it is not installed torch's own likeness of it, so that an exported model runs with torch alone.

The modules here import numpy; an exported copy of them imports `np` from here (`models.hf.repository`). Without numpy
`torch.from_numpy` and `Tensor.numpy`, which then do nothing but raise, pass on the tensors that arrays stand for.
"""

from __future__ import annotations

from typing import Any

import torch


def _likeness() -> Any:
    from importlib import import_module

    like: Any = import_module("torch._numpy")

    class Likeness:
        """What of the likeness is otherwise than numpy, as far as models ask for it."""

        def __getattr__(self, name: str) -> Any:
            return getattr(like, name)

        @staticmethod
        def repeat(values: Any, repeats: Any, axis: int | None = None) -> Any:
            """An empty list of repeats is one of whole numbers."""
            whole = repeats if isinstance(repeats, int) else like.asarray(repeats).astype(like.int64)
            return like.repeat(values, whole, axis)

    like.ndarray.setflags = lambda array, **_: None  # nothing here writes into an array that is kept
    bare: Any = torch
    bare.from_numpy = lambda array: array.tensor
    bare.Tensor.numpy = lambda tensor, **_: like.array(tensor.detach(), copy=False)
    return Likeness()


np: Any
try:
    import numpy as np
except ImportError:
    np = _likeness()
