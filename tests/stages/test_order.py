"""The order of examples: permuted epochs, a function of the seed and the position alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.stages.data.order import BucketOrder, Stream, draw, hash_seed


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


def split(counts: list[int]) -> list[np.ndarray]:
    """Buckets of so many examples; which index lies in which bucket is shuffled."""
    indices = np.random.default_rng(sum(counts)).permutation(sum(counts))
    return [np.sort(part) for part in np.split(indices, np.cumsum(counts)[:-1])]


buckets = st.lists(st.integers(0, 25), min_size=1, max_size=5).filter(any)
batches = st.integers(1, 9)
seeds = st.integers(0, 2**40)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 30), batches, st.integers(0, 300), seeds)
def test_one_bucket_is_the_plain_stream(count, batch, number, seed):
    bucket, indices = BucketOrder([np.arange(count)], batch, seed).at(number)
    assert bucket == 0
    np.testing.assert_array_equal(indices, draw(count, batch, number * batch, seed))


@settings(max_examples=100, deadline=None)
@given(buckets, batches, st.integers(0, 400), seeds)
def test_a_batch_is_of_one_bucket_and_can_be_entered_at_any_number(counts, batch, number, seed):
    members = split(counts)
    walked = BucketOrder(members, batch, seed)
    bucket, indices = [walked.at(n) for n in range(number + 1)][-1]
    assert len(indices) == batch and set(indices) <= set(members[bucket])
    entered = BucketOrder(members, batch, seed).at(number)
    assert entered[0] == bucket
    np.testing.assert_array_equal(entered[1], indices)


@settings(max_examples=100, deadline=None)
@given(buckets, batches, st.integers(1, 12), seeds)
def test_after_any_number_of_epochs_every_example_was_seen_nearly_as_often(counts, batch, epochs, seed):
    members = split(counts)
    order = BucketOrder(members, batch, seed)
    num_batches = sum(-(-epochs * count // batch) for count in counts)
    seen = np.zeros(sum(counts), dtype=int)
    for number in range(num_batches):
        np.add.at(seen, order.at(number)[1], 1)
    for bucket in members:
        if len(bucket):
            assert seen[bucket].min() >= epochs
            assert seen[bucket].max() <= epochs + -(-(batch - 1) // len(bucket))
            assert np.ptp(seen[bucket]) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(9, 25), min_size=1, max_size=4), batches, st.integers(0, 100), seeds)
def test_at_any_moment_buckets_that_fill_a_batch_are_within_two_epochs_of_each_other(counts, batch, number, seed):
    members = split(counts)
    order = BucketOrder(members, batch, seed)
    seen = np.zeros(sum(counts), dtype=int)
    for n in range(number):
        np.add.at(seen, order.at(n)[1], 1)
    assert np.ptp(seen) <= 2


def test_a_bucket_with_fewer_examples_than_a_batch_is_seen_in_the_first_epoch_and_then_as_its_size_asks():
    order = BucketOrder([np.arange(64), np.array([64])], 8, 3)
    drawn = [order.at(number)[0] for number in range(8 * 24 + 3)]
    assert drawn[:9].count(1) == 1 and drawn.count(1) == 3


def test_buckets_are_mixed_and_each_epoch_has_an_order_of_its_own():
    order = BucketOrder(split([80, 80]), 8, 0)
    epochs = [tuple(order.at(20 * epoch + n)[0] for n in range(20)) for epoch in range(6)]
    assert len(set(epochs)) == 6 and all(sum(epoch) == 10 for epoch in epochs)
    other = BucketOrder(split([80, 80]), 8, 1)
    assert tuple(other.at(n)[0] for n in range(20)) not in epochs


def test_empty_buckets_are_never_drawn_and_some_example_there_must_be():
    order = BucketOrder([np.arange(0), np.arange(5), np.arange(0)], 2, 0)
    assert {order.at(number)[0] for number in range(30)} == {1}
    with pytest.raises(ValueError, match="buckets"):
        BucketOrder([np.arange(0)], 2, 0)


def test_seeds_of_neighbours_have_nothing_in_common():
    seeds = {hash_seed(0, step, row) for step in range(100) for row in range(100)}
    assert len(seeds) == 10_000 and all(0 <= seed < 2**63 for seed in seeds)
    bits = np.array([[int(seed) >> bit & 1 for bit in range(63)] for seed in seeds])
    assert abs(bits.mean(0) - 0.5).max() < 0.03


def test_going_back_finds_what_was_there():
    """One stream, and one deal of batches, asked for later pieces and then for earlier ones."""
    stream, order = Stream(7, 5), BucketOrder(split([9, 13]), 4, 2)
    forward = [order.at(number) for number in range(20)]
    for at in (40, 3, 20, 0, 33):
        np.testing.assert_array_equal(stream.take(9, at), draw(7, 9, at, 5))
    for number in reversed(range(20)):
        bucket, indices = order.at(number)
        assert bucket == forward[number][0]
        np.testing.assert_array_equal(indices, forward[number][1])


def test_a_run_goes_on_in_the_order_that_an_older_version_began():
    """Written down: seeds and streams that were drawn otherwise would repeat and leave out examples after an update."""
    assert draw(7, 10, 3, 5).tolist() == [3, 6, 5, 0, 4, 2, 0, 6, 5, 3]
    for epoch in range(3):
        expected = np.random.default_rng((5, epoch)).permutation(7)
        np.testing.assert_array_equal(draw(7, 7, 7 * epoch, 5), expected)
    assert (hash_seed(3, 1, 4), hash_seed(0)) == (1798932345466327501, 7896617691693857887)
    order = BucketOrder([np.arange(5), np.arange(5, 12)], 3, 9)
    found = [(bucket, indices.tolist()) for bucket, indices in map(order.at, (0, 1, 2, 3, 4, 5, 9))]
    assert found == [
        (0, [4, 3, 0]),
        (1, [9, 11, 8]),
        (0, [2, 1, 2]),
        (1, [7, 6, 10]),
        (1, [5, 5, 10]),
        (0, [1, 4, 0]),
        (1, [8, 10, 5]),
    ]
