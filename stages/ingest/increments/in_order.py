"""What lies by shards, in the order of the sources: as it would lie had all been read at once.

In: what each group of shards holds, and where the items of this run lie (`stages.ingest.increments.known`). Out: runs
of it, without what is of no item any more. Groups are opened when their first item comes and held until their last.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Order:
    """The place of an item, known by its group and its number there, among all items of the run."""

    def __init__(self, table: np.ndarray):
        """`table`: int (2 or 3, items), group and number of each item in order."""
        ids = table[0].astype(np.uint64) << np.uint64(32) | table[1].astype(np.uint64)
        self._places = np.argsort(ids, kind="stable")
        self._ids = ids[self._places]
        groups = np.unique(table[0])
        starts = np.searchsorted(self._ids, groups.astype(np.uint64) << np.uint64(32))
        firsts = np.minimum.reduceat(self._places, starts) if len(groups) else starts
        self._counts = dict(zip(groups.tolist(), np.diff([*starts, len(ids)]).tolist(), strict=True))
        # The first item of each group.
        self.groups: dict[int, int] = dict(zip(groups.tolist(), firsts.tolist(), strict=True))

    def count(self, group: int) -> int:
        """Of the items in a group."""
        return self._counts.get(group, 0)

    def places(self, group: int, items: np.ndarray) -> np.ndarray:
        """Of items by their numbers, int64; -1 for one that is none of the run."""
        wanted = np.uint64(group) << np.uint64(32) | items.astype(np.uint64)
        at = np.searchsorted(self._ids, wanted)
        at[at == len(self._ids)] = 0
        return np.where(self._ids[at] == wanted, self._places[at], -1) if len(self._ids) else np.full(len(items), -1)


class Group(Generic[T]):
    """Rows of a group with the place of each one's item."""

    def __init__(self, rows: T, places: np.ndarray, take: Callable[[T, np.ndarray], T]):
        live = np.flatnonzero(places >= 0)
        self.order = live[np.argsort(places[live], kind="stable")]
        self.places = places[self.order]
        self.rows, self._take, self.at = rows, take, 0

    def until(self, place: int | None) -> T:
        """The next rows, of items before this place."""
        end = len(self.places) if place is None else int(np.searchsorted(self.places, place))
        found = self._take(self.rows, self.order[self.at : end])
        self.at = end
        return found

    @property
    def next(self) -> int | None:
        return int(self.places[self.at]) if self.at < len(self.places) else None


def in_order(order: Order, load: Callable[[int], Group[T]]) -> Iterator[T]:
    """Runs of the rows of all groups. `load`: a group's rows."""
    waiting = sorted(((first, number) for number, first in order.groups.items()), reverse=True)
    active: list[tuple[int, int, Group[T]]] = []
    while waiting or active:
        while waiting and (not active or waiting[-1][0] < active[0][0]):
            _, number = waiting.pop()
            group = load(number)
            if group.next is not None:
                heapq.heappush(active, (group.next, number, group))
        if not active:
            continue
        _, number, group = heapq.heappop(active)
        others = [*(place for place, _, _ in active[:1]), *(first for first, _ in waiting[-1:])]
        yield group.until(min(others, default=None))
        if group.next is not None:
            heapq.heappush(active, (group.next, number, group))
