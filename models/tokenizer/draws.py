"""What a training step draws at random, example by example, so that a batch gets the same however ranks divide it.

Inside `by_example` each example has a generator of its own; outside draws come from torch's global one. The first axis
of what is drawn is that of the examples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor

_GENERATORS: ContextVar[list[torch.Generator] | None] = ContextVar("generators", default=None)


@contextlib.contextmanager
def by_example(seeds: Sequence[int], device: torch.device) -> Iterator[None]:
    """Draws inside the block are those of the examples' seeds, one after the other for each."""
    token = _GENERATORS.set([torch.Generator(device).manual_seed(seed) for seed in seeds])
    try:
        yield
    finally:
        _GENERATORS.reset(token)


def filled(x: Tensor, fill: Callable[[Tensor, torch.Generator | None], Tensor]) -> Tensor:
    """`x`, an empty tensor of a batch, filled in place by `fill(part, generator)`; ValueError where the batch is
    another than the seeds are of."""
    generators = _GENERATORS.get()
    if generators is None:
        return fill(x, None)
    if len(generators) != len(x):
        raise ValueError(f"expected {len(generators)} examples, as there are seeds, got {len(x)}")
    for part, generator in zip(x, generators, strict=True):
        fill(part, generator)
    return x


def normal(x: Tensor) -> Tensor:
    """Standard normal numbers in place of `x`'s."""
    return filled(x, lambda part, generator: part.normal_(generator=generator))


def exponential(x: Tensor) -> Tensor:
    """Numbers of the exponential distribution of rate 1 in place of `x`'s."""
    return filled(x, lambda part, generator: part.exponential_(generator=generator))


def uniform(x: Tensor) -> Tensor:
    """Numbers in [0, 1) in place of `x`'s."""
    return filled(x, lambda part, generator: part.uniform_(generator=generator))


def below(x: Tensor, stop: int) -> Tensor:
    """Whole numbers from 0 up to `stop` in place of `x`'s."""
    return filled(x, lambda part, generator: part.random_(stop, generator=generator))
