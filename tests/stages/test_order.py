"""The order of examples: permuted epochs, a function of the seed and the position alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.stages.data.order import BucketOrder, Permutation, Stream, hash_seed, uniform


def draw(count: int, size: int, position: int, seed: int) -> np.ndarray:
    return Stream(count, seed).take(size, position)


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


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.integers(1, 300), st.integers(16000, 70000)), st.integers(0, 2**62))
def test_a_permutation_has_each_index_once_and_knows_where(count, seed):
    made = Permutation(count, seed)
    indices = made.at(np.arange(count))
    np.testing.assert_array_equal(np.sort(indices), np.arange(count))
    np.testing.assert_array_equal(made.places(indices), np.arange(count))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 2**48), st.integers(0, 2**62), st.data())
def test_a_permutation_of_any_size_is_one_and_needs_no_others(count, seed, data):
    places = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=50, unique=True)))
    made = Permutation(count, seed)
    indices = made.at(places)
    assert len(set(indices.tolist())) == len(places) and ((0 <= indices) & (indices < count)).all()
    np.testing.assert_array_equal(made.places(indices), places)
    np.testing.assert_array_equal(Permutation(count, seed).at(places[:1]), indices[:1])


@pytest.mark.parametrize("count", [1 << 14, (1 << 14) + 1, 100_003, (1 << 20) + 7, 10**8])
def test_a_permutation_looks_random(count):
    """Chi-square of where neighbours go to, of pairs of them, and of the places that low bits go to; over the seeds,
    where one index stands. All at 1 in 10,000 each side."""
    size = 40_000
    for seed in range(3):
        found = Permutation(count, seed).at(np.arange(min(size, count)))
        bins = found * 16 // count
        _plain(np.bincount(bins, minlength=16))
        _plain(np.bincount(16 * bins[:-1:2] + bins[1::2], minlength=256))
        _plain(np.bincount(np.diff(found[::2]) % 16, minlength=16))
        for bit in range(6):  # higher ones are not equally likely below a count that is no power of 2
            _plain(np.bincount(found >> bit & 1, minlength=2))
    _plain(np.bincount([int(Permutation(count, seed).at(np.array([5]))[0]) * 8 // count for seed in range(800)]))


def _plain(counts: np.ndarray) -> None:
    """That counts are those of equal chances."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    square = ((counts - expected) ** 2 / expected).sum()
    # Wilson and Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal.
    normal = (np.cbrt(square / freedom) - 1 + 2 / (9 * freedom)) / np.sqrt(2 / (9 * freedom))
    assert normal < 4.4, counts


def test_short_permutations_come_in_every_order():
    assert len({tuple(Permutation(4, seed).at(np.arange(4))) for seed in range(400)}) == 24


def test_numbers_by_position_are_as_if_drawn():
    drawn = uniform(np.arange(100_000), 7)
    assert (0 <= drawn).all() and (drawn < 1).all()
    _plain(np.bincount((drawn * 100).astype(int), minlength=100))
    _plain(np.bincount((16 * (drawn[:-1:2] * 16).astype(int) + (drawn[1::2] * 16).astype(int)), minlength=256))
    for other in (8, 7 + 2**20, hash_seed(7)):
        assert abs(np.corrcoef(drawn, uniform(np.arange(100_000), other))[0, 1]) < 0.015
    np.testing.assert_array_equal(uniform(np.array([99, 5]), 7), drawn[[99, 5]])


def test_the_order_of_documents_is_that_of_an_older_version():
    """Written down, as above."""
    assert Permutation(7, 5).at(np.arange(7)).tolist() == [1, 4, 2, 3, 6, 5, 0]
    assert Permutation(10**8, 5).at(np.arange(4)).tolist() == [26662612, 41752075, 90550158, 97391263]
    assert uniform(np.arange(3), 5).tolist() == [0.7138577247376192, 0.386768045983934, 0.7523070158382239]
