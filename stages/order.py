"""The order of examples: an endless stream of permuted epochs that can be entered at any position."""
from __future__ import annotations

import numpy as np


def draw(count: int, size: int, position: int, seed: int) -> np.ndarray:
    """`size` indices of `count` examples from global `position` on; epoch e is the permutation of (seed, e)."""
    positions = np.arange(position, position + size)
    epochs = positions // count
    indices = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs):
        order = np.random.default_rng((seed, int(epoch))).permutation(count)
        indices[epochs == epoch] = order[positions[epochs == epoch] % count]
    return indices


def hash_seed(*parts: int) -> int:
    """A 63-bit seed from integers, well mixed."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
