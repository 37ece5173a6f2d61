"""Dropout that follows from the seeds of rows. In: hidden states (B, N, C) in training. Out: the same with a share of
them 0 and the rest enlarged. What is dropped of a row depends on its seed and the layer's number alone: not on ranks,
the rows beside it, or what was drawn before. So a training goes on from a checkpoint under any division, and blocks
that are computed again drop the same; on one kind of device to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_STEP, _RANGE = 0x9E3779B97F4A7C15, 1 << 63
_APART = 0x51B54A32D192ED03  # from the streams of `models.unified.objectives.corruption`, which have the same seeds


class Dropout(nn.Module):
    """Drops a `share`; `number` tells the model's layers apart. `seeds`, int64 (B,) on the CPU, are those of the rows
    of `length` places, whose places from `first` on it is given."""

    def __init__(self, share: float, number: int):
        super().__init__()
        self.share, self.number = share, number
        self.seeds: Tensor | None = None
        self.first = self.length = 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.seeds is None or len(self.seeds) != len(x):
            raise ValueError(f"dropout: expected {len(x)} seeds, one a row; call seed_dropout before each pass")
        length = self.length or x.shape[1]
        kept = _kept(x.detach(), self.seeds, self.number, self.share, self.first, length)
        return x * kept * (1 / (1 - self.share))


# An operator of its own, as a compiler cannot look into generators.
@torch.library.custom_op("omniloom::kept", mutates_args=())
def _kept(x: Tensor, seeds: Tensor, number: int, share: float, first: int, length: int) -> Tensor:
    kept = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    whole = torch.empty(length, x.shape[-1], dtype=torch.bool, device=x.device)
    for row, seed in zip(kept, seeds.tolist(), strict=True):
        generator = torch.Generator(x.device).manual_seed(((seed ^ _APART) + number * _STEP) % _RANGE)
        own = whole.bernoulli_(1 - share, generator=generator)[first : first + len(row)]
        row[: len(own)] = own  # behind the row's end there is padding
    return kept


@_kept.register_fake
def _(x, seeds, number, share, first, length):
    return torch.empty(x.shape, dtype=torch.bool, device=x.device)


def dropouts(module: nn.Module) -> list[Dropout]:
    return [part for part in module.modules() if isinstance(part, Dropout)]


def seed_dropout(some: Sequence[Dropout], seeds: Sequence[int], first: int = 0, length: int = 0) -> None:
    """What the next pass in training drops; a seed a row. Where ranks share rows of `length` places out, this one has
    those from `first` on."""
    value = torch.tensor([seed % _RANGE for seed in seeds], dtype=torch.int64)
    for dropout in some:
        dropout.seeds, dropout.first, dropout.length = value, first, length
