"""The order of examples: endless streams of permuted epochs that can be entered at any position.

A `Stream` is one (`draw` takes a piece of it at once); `BucketOrder` deals batches out of several, each from one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


class Stream:
    """Indices of `count` examples without end; epoch e is the permutation of (seed, e), of which the last is kept."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed = count, seed
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def take(self, size: int, position: int) -> np.ndarray:
        """`size` indices from global `position` on, int64 (size,)."""
        positions = np.arange(position, position + size)
        epochs = positions // self.count
        indices = np.empty(size, dtype=np.int64)
        for epoch in np.unique(epochs):
            indices[epochs == epoch] = self._epoch(int(epoch))[positions[epochs == epoch] % self.count]
        return indices

    def _epoch(self, epoch: int) -> np.ndarray:
        last = self._last  # read once: another thread may put another epoch in its place
        if last[0] != epoch:
            last = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.count)
            self._last = last
        return last[1]


def draw(count: int, size: int, position: int, seed: int) -> np.ndarray:
    """`size` indices of `count` examples from global `position` on; epoch e is the permutation of (seed, e)."""
    return Stream(count, seed).take(size, position)


class BucketOrder:
    """An endless run of batches, each from one bucket; batch `number` is a function of the arguments and itself.

    Every bucket is a `Stream` of its own, cut into batches that may reach into its next epoch.
    Epoch e of the whole deals out, in an order drawn from (seed, e), those batches of each bucket that begin in the
    bucket's epoch e: what a bucket's last batch of an epoch takes ahead, its next epoch has less. So nothing is
    dropped; a bucket with fewer examples than a batch is seen in the first epoch (its batch holds several of its
    epochs) and then as seldom as its size asks. After E epochs an example of a bucket of n was seen E times or up to
    ceil((batch - 1) / n) times more. With one bucket, batch `number` is draw(n, batch, number * batch, seed).
    """

    def __init__(self, buckets: Sequence[np.ndarray], batch: int, seed: int):
        """`buckets`: the examples' indices, int (n,) each; n may be 0 for some, not for all."""
        self.buckets, self.batch, self.seed = buckets, batch, seed
        self.counts = [len(bucket) for bucket in buckets]
        if not sum(self.counts):
            raise ValueError("buckets: there are no examples")
        # The first bucket keeps the seed, so that one bucket is `draw`.
        self._streams = [
            Stream(count, hash_seed(seed, number) if number else seed) for number, count in enumerate(self.counts)
        ]
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def at(self, number: int) -> tuple[int, np.ndarray]:
        """The bucket of batch `number` from 0 on, and its examples' indices, int64 (batch,)."""
        # Every epoch deals at least sum(counts) / batch batches on average, which bounds the search.
        limit = number * self.batch // sum(self.counts) + 1
        epoch = bisect_right(range(limit + 1), number, key=lambda e: sum(self._begun(e))) - 1
        schedule = self._schedule(epoch)
        begun = self._begun(epoch)
        place = number - sum(begun)
        bucket = int(schedule[place])
        turn = begun[bucket] + int(np.count_nonzero(schedule[:place] == bucket))
        return bucket, self.buckets[bucket][self._streams[bucket].take(self.batch, turn * self.batch)]

    def _begun(self, epoch: int) -> list[int]:
        """Batches of each bucket that begin before its epoch `epoch`: those whose first position is below it."""
        return [-(-epoch * count // self.batch) for count in self.counts]

    def _schedule(self, epoch: int) -> np.ndarray:
        """The buckets of an epoch's batches, in order."""
        known = self._epoch  # read once: another thread may put another epoch in its place
        if known[0] != epoch:
            dealt = np.subtract(self._begun(epoch + 1), self._begun(epoch))
            known = (
                epoch,
                np.random.default_rng((self.seed, epoch, 5)).permutation(np.repeat(np.arange(len(dealt)), dealt)),
            )
            self._epoch = known
        return known[1]


def hash_seed(*parts: int) -> int:
    """A 63-bit seed from integers, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
