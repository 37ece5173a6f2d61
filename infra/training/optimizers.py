"""Optimizers of PyTorch, stepped without its compiler."""

from __future__ import annotations

import inspect
from typing import Any

import torch

_step: Any = inspect.unwrap(torch.optim.AdamW.step)


class AdamW(torch.optim.AdamW):
    """PyTorch's own, whose `step` imports the compiler to tell it where a graph breaks: in a rank that compiles nothing
    that takes longer than to import PyTorch. No compiled code of ours steps an optimizer."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        return _step(self, closure)
