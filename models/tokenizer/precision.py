"""Modules that stay float32 whatever the model around them is cast to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from torch import nn


class KeepsFloat32(nn.Module):
    """A module whose own parameters and float buffers move between devices with the model and keep their type.

    For what bf16 cannot hold: averages with a decay of 0.99, weights trained elsewhere. Children are cast.
    """

    def _apply(self, fn: Callable, recurse: bool = True) -> Self:
        parameters = {name: p.data for name, p in self._parameters.items() if p is not None}
        buffers = {name: b for name, b in self._buffers.items() if b is not None and b.is_floating_point()}
        super()._apply(fn, recurse)
        for name, kept in parameters.items():
            moved = self.get_parameter(name)
            if moved.dtype != kept.dtype:
                moved.data = kept.to(moved.device)
        for name, kept in buffers.items():
            cast = self.get_buffer(name)
            if cast.dtype != kept.dtype:
                self._buffers[name] = kept.to(cast.device)
        return self
