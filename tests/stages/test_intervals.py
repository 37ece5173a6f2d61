"""Intervals of figures, and two evaluations held against each other: how often they are right."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from omniloom.stages.evaluate.comparing import compare, holm, mcnemar
from omniloom.stages.evaluate.intervals import interval, intervals
from omniloom.stages.evaluate.items import label_weights, read, values_of, write
from omniloom.stages.evaluate.metrics import frechet_parts


def named(count: int) -> list[str]:
    return [f"item {number}" for number in range(count)]


def test_figures_are_weighted_means_and_come_back_from_their_file(tmp_path):
    labels = ["a", "a", "a", "b"]
    shares = values_of(named(4), [1, 0, 1, 0], label_weights(labels))
    bits = values_of(["x", "y"], [2.0, 8.0], np.array([30.0, 10.0]))
    twice = values_of(["x", "y", "x"], [1.0, 0.0, 0.0])
    assert shares.mean == pytest.approx((2 / 3 + 0) / 2) and bits.mean == (60 + 80) / 40
    grouped = twice.by_item()
    assert grouped.ids == ("x", "y") and grouped.values.tolist() == [0.5, 0.0] and grouped.weights.tolist() == [2, 1]
    write(str(tmp_path), {"shares": shares, "bits": bits, "twice": twice})
    found = read(str(tmp_path))
    assert list(found) == ["bits", "shares", "twice"] and found["twice"].ids == twice.ids
    for name, held in (("shares", shares), ("bits", bits)):
        np.testing.assert_array_equal(found[name].values, held.values)
        np.testing.assert_array_equal(found[name].weights, held.weights)
    assert read(str(tmp_path / "nothing")) is None


def test_an_interval_is_that_of_another_implementation():
    values = np.random.default_rng(0).lognormal(size=80)
    low, high = interval(values_of(named(80), values), 0)
    other = bootstrap((values,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(1))
    assert (low, high) == pytest.approx(tuple(other.confidence_interval), rel=0.05)
    assert (low, high) == interval(values_of(named(80), values), 0) != interval(values_of(named(80), values), 1)


def test_what_has_no_interval_and_shares_that_are_all_equal():
    assert interval(values_of(["a"], [1.0]), 0) is None
    assert interval(values_of(["a", "b"], [1.0, math.nan]), 0) is None
    assert interval(values_of(["a", "a"], [1.0, 0.0]), 0) is None, "one item, drawn twice"
    exact = binomtest(50, 50).proportion_ci(0.95, "exact")
    assert interval(values_of(named(50), np.ones(50)), 0) == pytest.approx((exact.low, exact.high))
    assert interval(values_of(named(50), np.zeros(50)), 0) == pytest.approx((0.0, 1 - exact.low))
    assert interval(values_of(named(50), np.full(50, 3.0)), 0) == (3.0, 3.0)
    assert intervals({"a": values_of(["x"], [1.0])}, 0) == {}


@pytest.mark.parametrize("kind", ["share", "skewed", "ratio", "repeated"])
def test_intervals_hold_the_truth_19_times_in_20(kind):
    rng, held, tries = np.random.default_rng(3), 0, 200
    for _ in range(tries):
        ids, weights = named(60), None
        if kind == "share":
            values, truth = rng.random(60) < 0.8, 0.8
        elif kind == "skewed":
            values, truth = rng.exponential(size=60), 1.0
        elif kind == "ratio":
            weights = rng.integers(50, 3000, 60).astype(float)
            values, truth = 2 + rng.normal(size=60) * 30 / np.sqrt(weights), 2.0
        else:  # four of each item, which go together
            ids = [item for item in named(30) for _ in range(4)]
            values, truth = np.repeat(rng.normal(size=30), 4) + 0.3 * rng.normal(size=120), 0.0
        low, high = interval(values_of(ids, values, weights), 0)
        held += low <= truth <= high
    assert held / tries > 0.89  # 0.95 of many items; of 60 a little less


def test_intervals_of_distances_hold_what_many_draws_come_to():
    rng, scale = np.random.default_rng(4), (1 + np.arange(30)) ** -0.5

    def distance() -> tuple[np.ndarray, float]:
        whole, *parts = frechet_parts(rng.normal(size=(120, 30)) * scale, rng.normal(size=(120, 30)) * scale * 1.2)
        return whole + sum(parts), whole

    mean = np.mean([distance()[1] for _ in range(100)])
    ends = [interval(values_of(named(120), distance()[0]), 0) for _ in range(60)]
    assert np.mean([low <= mean <= high for low, high in ends]) >= 0.93


def test_tests_are_those_of_their_definitions():
    for gained, lost in ((0, 0), (5, 0), (9, 2), (40, 61)):
        expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        assert mcnemar(gained, lost) == pytest.approx(expected)
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    first, second = np.zeros(6), np.array([0.3, 0.1, -0.05, 0.4, 0.2, 0.25])
    reached = [
        abs(np.dot(signs, second)) >= second.sum() - 1e-12 for signs in itertools.product((-1, 1), repeat=len(second))
    ]
    pair = ({"recon_psnr_image": values_of(named(6), part)} for part in (first, second))
    assert compare(*pair).figures[0].p == pytest.approx(np.mean(reached))


LOWER, HIGHER, SHARE = "bits_per_byte", "recon_psnr_image", "caption_exact"


def model(rng, items: int, better: float = 0.0) -> dict:
    """What an evaluation has of a model: values that go with the items, and others by chance; a share, a mean and a
    ratio."""
    hard = np.random.default_rng(7).normal(size=items)
    sizes = np.random.default_rng(8).integers(100, 2000, items).astype(float)
    share = rng.random(items) < 1 / (1 + np.exp(-hard - 4 * better))
    mean = 25 + hard + better + 0.5 * rng.normal(size=items)
    ratio = 2 + 0.1 * hard - 0.2 * better + 0.05 * rng.normal(size=items)
    return {
        SHARE: values_of(named(items), share),
        HIGHER: values_of(named(items), mean),
        LOWER: values_of(named(items), ratio, sizes),
        "classifier_accuracy": values_of(named(items), share),
    }


@pytest.mark.parametrize("items", [12, 80])
def test_of_200_pairs_of_equal_models_at_most_one_in_twenty_is_called_different(items):
    rng = np.random.default_rng(5)
    different = sum(compare(model(rng, items), model(rng, items)).decision != "undecided" for _ in range(200))
    assert different <= 10


def test_better_and_worse_are_of_the_second_and_by_each_figures_own_way():
    rng = np.random.default_rng(6)
    first, second = model(rng, 150), model(rng, 150, better=0.5)
    there, back = compare(first, second), compare(second, first)
    assert [figure.measure for figure in there.figures] == sorted([SHARE, HIGHER, LOWER]), "of the model alone"
    assert {figure.decision for figure in there.figures} == {"better"} and there.decision == "better"
    assert {figure.decision for figure in back.figures} == {"worse"} and back.decision == "worse"
    by_name = {figure.measure: figure for figure in there.figures}
    assert by_name[LOWER].difference < 0 < by_name[HIGHER].difference
    for figure in there.figures:
        assert figure.low < figure.difference < figure.high and figure.items == 150
        assert figure.difference == pytest.approx(figure.second - figure.first)
    assert compare(first, {**second, LOWER: model(rng, 150, better=-0.5)[LOWER]}).decision == "mixed"


def test_pairs_are_of_the_items_that_both_have():
    rng = np.random.default_rng(9)
    first, second = model(rng, 40), model(rng, 40)
    shifted = values_of(named(60)[20:], second[HIGHER].values)
    found = compare(first, {HIGHER: shifted, SHARE: values_of(["other"], [1.0])})
    assert found.apart == (LOWER, SHARE) or set(found.apart) == {LOWER, SHARE}
    (figure,) = found.figures
    assert figure.items == 20
    assert figure.difference == pytest.approx(second[HIGHER].values[:20].mean() - first[HIGHER].values[20:].mean())
    same = compare(first, first)
    assert same.decision == "undecided" and {figure.p for figure in same.figures} == {1.0}
    assert {(figure.low, figure.high) for figure in same.figures} == {(0.0, 0.0)}
