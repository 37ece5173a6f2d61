"""Work that the ranks share out: each does its part of a list, and all know the results in the list's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from omniloom.infra.training.shards import gathered, ranks

Item = TypeVar("Item")
Result = TypeVar("Result")


def shared(items: Sequence[Item], do: Callable[[Item], Result], together: bool = False, group: int = 1) -> list[Result]:
    """[do(item) for item in items], of which each rank does its part. With `together` every rank calls `do` equally
    often, as a collective needs: one that has less to do repeats an item. Where ranks side by side do each item
    together, a `group` of so many, each gives a result of it, one behind the other. Every rank must call it; results
    are pickled."""
    rank, size = (number // group for number in ranks())
    mine = list(range(rank, len(items), size))
    done = [(number, do(items[number])) for number in mine]
    if together and len(mine) < -(-len(items) // size):
        do(items[0])
    everywhere = [found for part in gathered(done) for found in part]
    return [result for _, result in sorted(everywhere, key=lambda found: found[0])]
