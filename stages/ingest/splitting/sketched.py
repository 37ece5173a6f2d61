"""Sketched: the texts of a corpus that have a sketch, in the order of the shards where they begin. In: records by rows.
Out: of each text, by its number, what it is called and its sketch, read from the shards when it is asked for.

A text is a record, or the records of one group together: its sketch is the least of theirs, value by value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from omniloom.stages.data.media.sketches import SKETCH
from omniloom.stages.ingest.splitting.columns import mixed, ordered

# Of a column, looks or sketch, in a shard by its number: the values of these rows, of each the one at a place, as uint8
# (n, width).
Read = Callable[[str, int, np.ndarray, np.ndarray], np.ndarray]


class Texts:
    """`shards`: the names of those in which texts begin, as they come. `order`: of each text its first record."""

    def __init__(
        self,
        sketched: np.ndarray,
        nodes: np.ndarray,
        ids: np.ndarray,
        where: tuple[np.ndarray, np.ndarray],
        names: list[str],
        read: Read,
    ):
        """`sketched`: the rows of records with a sketch, rising. Of all records are `nodes`, what stands for their
        groups, `ids`, uint64 (n, 2), and `where`, the shard and the row there. `names`: of shards by number."""
        self._nodes, self._ids, self._where, self._read = nodes, ids, where, read
        own = nodes[sketched]
        if not ordered(own):
            order = np.argsort(own, kind="stable")
            sketched, own = sketched[order], own[order]
        new = np.ones(len(own), bool)
        np.not_equal(own[1:], own[:-1], out=new[1:])
        self._members, self.order = sketched, sketched if new.all() else sketched[new]
        self._several: tuple[np.ndarray, np.ndarray] | None = None  # where the records of each begin, and how many
        if len(self.order) < len(sketched):
            starts = np.flatnonzero(new)
            self._several = starts, np.diff(starts, append=len(own))
        shard = where[0][self.order]
        if not ordered(shard):
            order = np.argsort(shard, kind="stable")
            self.order, shard = self.order[order], shard[order]
            if self._several:
                self._several = self._several[0][order], self._several[1][order]
            else:
                self._members = self.order
        numbers, self._firsts = np.unique(shard, return_index=True)
        self.shards = [names[number] for number in numbers.tolist()]
        self.shape = (len(self.order), SKETCH)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, segment: int) -> np.ndarray:
        """The texts that begin in a shard."""
        start, stop = [*self._firsts.tolist(), len(self)][segment : segment + 2]
        return np.arange(start, stop)

    def nodes(self, texts: np.ndarray) -> np.ndarray:
        """What stands for their groups."""
        return self._nodes[self.order[texts]]

    def names(self, texts: np.ndarray) -> np.ndarray:
        """uint64 (n, 2): another one for another text."""
        members, firsts = self._of(texts)
        names = mixed(self._ids[members])
        return np.add.reduceat(names, firsts, axis=0) if len(members) > len(texts) else names

    def __getitem__(self, texts: np.ndarray) -> np.ndarray:
        """uint32 (n, SKETCH)."""
        members, firsts = self._of(texts)
        shards, at = self._where[0][members], self._where[1][members]
        found = np.empty((len(members), 4 * SKETCH), np.uint8)
        for shard in np.unique(shards).tolist():
            own = np.flatnonzero(shards == shard)
            found[own] = self._read("sketch", shard, at[own].astype(np.int64), np.zeros(len(own), np.int64))
        values = found.view(np.uint32)
        return np.minimum.reduceat(values, firsts, axis=0) if len(members) > len(texts) else values

    def _of(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The records of these texts, one's after another, and where among them those of each begin."""
        if not self._several:
            return self._members[texts], np.arange(len(texts))
        starts, counts = self._several[0][texts], self._several[1][texts]
        firsts = np.cumsum(counts) - counts
        return self._members[np.repeat(starts - firsts, counts) + np.arange(counts.sum())], firsts
