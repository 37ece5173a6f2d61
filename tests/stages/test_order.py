"""The order of examples: permuted epochs, a function of the seed and the position alone."""
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.order import draw, hash_seed


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), st.integers(0, 100), st.integers(0, 500), st.integers(0, 2**40))
def test_any_piece_of_the_stream_is_that_piece(count, size, position, seed):
    stream = draw(count, position + size, 0, seed)
    np.testing.assert_array_equal(draw(count, size, position, seed), stream[position:])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(0, 2**40))
def test_each_epoch_is_a_permutation_of_its_own(count, seed):
    epochs = draw(count, 4 * count, 0, seed).reshape(4, count)
    assert (np.sort(epochs) == np.arange(count)).all()
    if count > 20:
        assert len({tuple(epoch) for epoch in epochs}) == 4
        assert tuple(draw(count, count, 0, seed + 1)) not in {tuple(epoch) for epoch in epochs}


def test_every_order_is_equally_likely():
    found = {tuple(draw(3, 3, 0, seed)) for seed in range(200)}
    assert len(found) == 6


def test_seeds_of_neighbours_have_nothing_in_common():
    seeds = {hash_seed(0, step, row) for step in range(100) for row in range(100)}
    assert len(seeds) == 10_000 and all(0 <= seed < 2**63 for seed in seeds)
    bits = np.array([[int(seed) >> bit & 1 for bit in range(63)] for seed in seeds])
    assert abs(bits.mean(0) - 0.5).max() < 0.03
