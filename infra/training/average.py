"""The moving average of trained weights (EMA), kept where the optimizer keeps them: each rank has that of its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_AT_ONCE = 1 << 22  # numbers that are exchanged together


class MovingAverage:
    """Moving averages of the tensors that this rank's optimizer steps, in their layout."""

    def __init__(self, flats: Iterable[Tensor], decay: float):
        self.decay, self._flats = decay, {id(flat): flat for flat in flats}
        self._values = {key: flat.detach().clone() for key, flat in self._flats.items()}

    def of(self, flat: Tensor) -> Tensor:
        """The average of one of the tensors, in its layout: the memory itself."""
        return self._values[id(flat)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the 0-based `step`."""
        # A short memory at first, so that the average does not remember the initialisation.
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._values.values()), [f.detach() for f in self._flats.values()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the weights, a little at a time: no copy is made of either."""
        for key, flat in self._flats.items():
            for mine, theirs in zip(_pieces(self._values[key]), _pieces(flat.detach()), strict=True):
                kept = mine.clone()
                mine.copy_(theirs)
                theirs.copy_(kept)


def _pieces(flat: Tensor) -> tuple[Tensor, ...]:
    return flat.view(-1).split(_AT_ONCE)
