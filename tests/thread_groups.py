"""Ranks of a sequence group as threads of this process: fast, and without what `infra` brings."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class ThreadGroup:
    """A `SequenceGroup`. `board` and `barrier` are those of all its ranks."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier):
        self.rank, self.size, self._board, self._barrier = rank, size, board, barrier

    def all_to_all(self, x: Tensor) -> Tensor:
        return _AllToAll.apply(x, self)

    def exchange(self, x: Tensor) -> Tensor:
        self._board[self.rank] = x
        self._barrier.wait()
        received = torch.stack([theirs[self.rank] for theirs in self._board])
        self._barrier.wait()
        return received


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ThreadGroup) -> Tensor:
        ctx.group = group
        return group.exchange(x.detach())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.exchange(grad), None


def on_threads(size: int, do: Callable[[ThreadGroup], Result]) -> list[Result]:
    """What `do` gives on each of `size` ranks."""
    board, barrier = [None] * size, threading.Barrier(size)

    def on_rank(rank: int) -> Result:
        try:
            return do(ThreadGroup(rank, size, board, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(on_rank, rank) for rank in range(size)]
    failed = [error for future in futures if (error := future.exception())]
    for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
