"""The order of examples: endless streams of permuted epochs that can be entered at any position.

Of clips: a `Stream` is one that keeps its last epoch's permutation, `BucketOrder` deals batches out of several, each
from one. Of documents: a `Permutation` is one epoch of any size, computed where it is asked and never held. `uniform`
draws numbers by position, so that what is drawn for one does not depend on what was drawn before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

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


class BucketOrder:
    """An endless run of batches, each from one bucket; batch `number` is a function of the arguments and itself.

    Every bucket is a `Stream` of its own, cut into batches that may reach into its next epoch.
    Epoch e of the whole deals out, in an order drawn from (seed, e), those batches of each bucket that begin in the
    bucket's epoch e: what a bucket's last batch of an epoch takes ahead, its next epoch has less. So nothing is
    dropped; a bucket with fewer examples than a batch is seen in the first epoch (its batch holds several of its
    epochs) and then as seldom as its size asks. After E epochs an example of a bucket of n was seen E times or up to
    ceil((batch - 1) / n) times more. With one bucket, batch `number` is Stream(n, seed).take(batch, number * batch).
    """

    def __init__(self, buckets: Sequence[np.ndarray], batch: int, seed: int):
        """`buckets`: the examples' indices, int (n,) each; n may be 0 for some, not for all."""
        self.buckets, self.batch, self.seed = buckets, batch, seed
        self.counts = [len(bucket) for bucket in buckets]
        if not sum(self.counts):
            raise ValueError("buckets: there are no examples")
        # The first bucket keeps the seed, so that one bucket is a plain `Stream`.
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


# Up to here a permutation is held (128 KiB): the short words of a Feistel network would not reach every order.
_HELD = 1 << 14
_ROUNDS = 6


class Permutation:
    """A permutation of range(count) by a seed, in O(1) an index and without memory where `count` is large.

    A Feistel network over the least number of bits that hold `count` (Luby and Rackoff 1988), whose halves may differ
    in width, walked on while it leaves range(count) (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """

    def __init__(self, count: int, seed: int):
        self.count = count
        self._held = np.random.default_rng(seed).permutation(count) if count <= _HELD else None
        self._back: np.ndarray | None = None
        bits = max(2, (count - 1).bit_length())
        self._low = np.uint64(bits // 2)
        self._masks = [np.uint64((1 << width) - 1) for width in (bits // 2, bits - bits // 2)]
        self._keys = [np.uint64(hash_seed(seed, number)) for number in range(_ROUNDS)]

    def at(self, places: np.ndarray) -> np.ndarray:
        """The indices at these places, int64 as they are."""
        if self._held is not None:
            return self._held[places]
        return self._walk(places, range(_ROUNDS))

    def places(self, indices: np.ndarray) -> np.ndarray:
        """Where these indices stand: the inverse of `at`."""
        if self._held is not None:
            if self._back is None:
                self._back = np.argsort(self._held)
            return self._back[indices]
        return self._walk(indices, reversed(range(_ROUNDS)))

    def _walk(self, given: np.ndarray, rounds: Iterable[int]) -> np.ndarray:
        order = list(rounds)
        values = self._network(np.asarray(given).astype(np.uint64), order)
        outside = np.flatnonzero(values >= self.count)
        while len(outside):
            values[outside] = again = self._network(values[outside], order)
            outside = outside[again >= self.count]
        return values.astype(np.int64)

    def _network(self, words: np.ndarray, rounds: list[int]) -> np.ndarray:
        halves = [words & self._masks[0], words >> self._low]
        for number in rounds:  # each round changes one half by the other, so that it is its own inverse
            half = number % 2
            halves[half] ^= mixed(halves[1 - half] + self._keys[number]) & self._masks[half]
        return halves[1] << self._low | halves[0]


def uniform(positions: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) by position, float64: those of one seed are as if drawn independently."""
    words = mixed(np.asarray(positions).astype(np.uint64) * _GOLDEN + np.uint64(seed))
    return (words >> np.uint64(11)) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(words: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014): uint64 -> uint64, each bit depends on all."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
