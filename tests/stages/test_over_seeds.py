"""Recipes compared by several trainings of each: what the spread over seeds allows to say, and what it forbids."""

from __future__ import annotations

import numpy as np
import pytest

from omniloom.stages.evaluate import over_seeds
from omniloom.stages.evaluate.comparing import compare
from omniloom.stages.evaluate.items import values_of

ITEMS = 60


def trainings(
    rng: np.random.Generator, items: dict[str, np.ndarray], count: int, seeds: float = 0.05, better: float = 0.0
) -> list:
    """Evaluations of models whose figures move with their seeds, by `seeds`, and a little by item."""
    found = []
    for _ in range(count):
        moved = {name: seeds * rng.normal() - better for name in items}
        found.append(
            {
                name: values_of([f"i{n}" for n in range(ITEMS)], base + moved[name] + 0.02 * rng.normal(size=ITEMS))
                for name, base in items.items()
            }
        )
    return found


@pytest.fixture
def items() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: 2 + 0.5 * rng.normal(size=ITEMS) for name in ("bits_per_byte", "text_repeated", "image_memorised")}


def different(comparison) -> bool:
    return comparison.decision != "undecided"


@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_200_equal_recipes_at_most_ten_are_called_different_where_items_alone_call_most(items, count):
    rng = np.random.default_rng(count)
    pairs = [(trainings(rng, items, count), trainings(rng, items, count)) for _ in range(200)]
    assert sum(different(over_seeds.compare(one, other)) for one, other in pairs) <= 10
    assert sum(different(compare(one[0], other[0])) for one, other in pairs[:10]) > 7


def test_what_is_better_beyond_the_seeds_is_found(items):
    rng = np.random.default_rng(7)
    found = [
        over_seeds.compare(trainings(rng, items, 4), trainings(rng, items, 4, better=0.4)).decision for _ in range(50)
    ]
    assert found.count("better") >= 45 and "worse" not in found
    back = over_seeds.compare(trainings(rng, items, 4, better=0.4), trainings(rng, items, 4))
    assert back.decision == "worse"


def test_one_figure_by_hand():
    values = np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 5.0], [4.0, 4.0, 4.0], [5.0, 3.0, 10.0]])
    held = [{"bits_per_byte": values_of(["a", "b", "c"], row)} for row in values]
    (found,) = over_seeds.compare(held[:2], held[2:]).figures
    means, differences = values.mean(1), values[2:].mean(0) - values[:2].mean(0)
    parts = [means[:2].var(ddof=1) / 2, means[2:].var(ddof=1) / 2, differences.var(ddof=1) / 3]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 1 + parts[1] ** 2 / 1 + parts[2] ** 2 / 2)
    from scipy.stats import t

    assert found.difference == pytest.approx(means[2:].mean() - means[:2].mean())
    assert found.p == pytest.approx(2 * t.sf(found.difference / sum(parts) ** 0.5, freedom))
    reach = t.ppf(0.975, freedom) * sum(parts) ** 0.5
    assert (found.low, found.high) == pytest.approx((found.difference - reach, found.difference + reach))
    assert found.items == 3 and found.decision == "undecided"


def test_students_t_is_that_of_scipy():
    from scipy.stats import t

    for freedom in (0.7, 1.0, 2.5, 4.0, 11.3, 60.0, 1e4):
        for value in (1e-6, 0.3, 1.0, 2.0, 5.0, 40.0):
            assert over_seeds.beyond(value, freedom) == pytest.approx(2 * t.sf(value, freedom), rel=1e-6)
    assert over_seeds.beyond(0.0, 3.0) == 1.0 and over_seeds.beyond(float("inf"), 3.0) == 0.0


def test_items_and_figures_that_not_all_trainings_have(items):
    rng = np.random.default_rng(3)
    one, other = trainings(rng, items, 2), trainings(rng, items, 2)
    del other[1]["text_repeated"]
    held = one[0]["bits_per_byte"]
    one[0]["bits_per_byte"] = values_of(held.ids[:40], [*held.values[:39], np.nan])
    found = over_seeds.compare(one, other)
    assert found.apart == ("text_repeated",)
    assert {figure.measure: figure.items for figure in found.figures} == {"bits_per_byte": 39, "image_memorised": ITEMS}
    with pytest.raises(ValueError, match="at least 2 trainings of each, got 1 and 2"):
        over_seeds.compare(one[:1], other)


def test_equal_trainings_are_undecided():
    held = [{"bits_per_byte": values_of(["a", "b"], [1.0, 2.0])}] * 2
    assert over_seeds.compare(held, held).decision == "undecided"
