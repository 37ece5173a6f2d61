"""Two recipes held against each other by several trainings of each, whose seeds differ. In: the items of each
training's evaluation. Out: a `Comparison` as `stages.evaluate.comparing` gives it, of the recipes.

How far a figure moves from seed to seed only several trainings tell: a training by the same recipe is another model,
which a test over items alone calls different as soon as there are items enough. Seeds and items are both drawn, so that
both are in the variance of the difference of the means (a model with two random effects, as for raters and cases):

    d = mean over B's trainings - mean over A's
    variance = s_A^2 / K_A + s_B^2 / K_B + s_d^2 / n

with s_A, s_B the deviations of a training's figure, and s_d that of the items' differences between the recipes. What a
seed does to one item is in both parts, which errs towards undecided. d over its root is held against Student's t with
Welch's and Satterthwaite's degrees of freedom; over the figures p is adjusted as for two models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from omniloom.stages.evaluate.comparing import RISK, Compared, Comparison, Decision, holm, way
from omniloom.stages.evaluate.items import Values

LEAST = 2  # trainings of each recipe, below which nothing tells how they differ

Trainings = Sequence[Mapping[str, Values]]


def compare(first: Trainings, second: Trainings, names: Iterable[str] | None = None) -> Comparison:
    """Of all figures that every training has and of which one way is better, or of those `names`. ValueError where a
    recipe has fewer than `LEAST` trainings."""
    if min(len(first), len(second)) < LEAST:
        raise ValueError(f"expected at least {LEAST} trainings of each, got {len(first)} and {len(second)}")
    every = [*first, *second]
    wanted = sorted(set().union(*every)) if names is None else list(names)
    wanted = [name for name in wanted if way(name)]
    found = {}
    for name in wanted:
        if all(name in held for held in every) and (matched := _matched([held[name] for held in every])):
            found[name] = _Difference(*matched, len(first))
    adjusted = holm({name: held.p for name, held in found.items() if held.values.any()})
    figures = tuple(held.compared(name, adjusted.get(name, 1.0)) for name, held in found.items())
    return Comparison(figures, tuple(name for name in wanted if name not in found))


def _matched(held: Sequence[Values]) -> tuple[np.ndarray, np.ndarray] | None:
    """Of the items that all trainings measured: values (trainings, items), and the items' weights, which sum to 1; None
    of fewer than two items."""
    held = [values.by_item() for values in held]
    both = sorted(set(held[0].ids).intersection(*(values.ids for values in held[1:])))
    if len(both) < 2:
        return None
    places = [np.searchsorted(np.array(values.ids), np.array(both)) for values in held]
    values = np.stack([one.values[at] for one, at in zip(held, places, strict=True)])
    weights = sum(one.weights[at] / one.weights[at].sum() for one, at in zip(held, places, strict=True))
    kept = np.isfinite(values).all(axis=0)
    if kept.sum() < 2:
        return None
    weights = np.asarray(weights)[kept]
    return values[:, kept], weights / weights.sum()


class _Difference:
    """Of one figure; `values` (trainings, items), those of the first recipe first, by weights that sum to 1."""

    def __init__(self, values: np.ndarray, weights: np.ndarray, firsts: int):
        sides = values[:firsts], values[firsts:]
        self.items = values.shape[1]
        means = [side @ weights for side in sides]
        self.first, self.second = (float(mean.mean()) for mean in means)
        self.mean = self.second - self.first
        self.values = sides[1].mean(axis=0) - sides[0].mean(axis=0)
        of_items = float((weights**2 * (self.values - self.mean) ** 2).sum() * self.items / (self.items - 1))
        parts = [(float(mean.var(ddof=1)) / len(mean), len(mean) - 1) for mean in means]
        parts.append((of_items, self.items - 1))
        self.variance = sum(part for part, _ in parts)
        spread = sum(part**2 / freedom for part, freedom in parts)
        self.freedom = self.variance**2 / spread if spread else float(self.items - 1)

    @property
    def p(self) -> float:
        if not self.variance:
            return 1.0 if not self.mean else 0.0
        return beyond(abs(self.mean) / self.variance**0.5, self.freedom)

    def compared(self, name: str, p: float) -> Compared:
        reach = _reached(1 - 0.95, self.freedom) * self.variance**0.5
        decision: Decision = "undecided"
        if p < RISK and self.mean:
            decision = "better" if self.mean * way(name) > 0 else "worse"
        low, high = self.mean - reach, self.mean + reach
        return Compared(name, self.first, self.second, self.mean, low, high, p, self.items, decision)


def beyond(t: float, freedom: float) -> float:
    """The probability that Student's t is further from 0 than this: the incomplete beta function of freedom / 2 and 1/2
    at freedom / (freedom + t^2), by its continued fraction (Abramowitz and Stegun, 26.5.8 and 26.7.1)."""
    a, b, x = freedom / 2, 0.5, freedom / (freedom + t * t)
    if not 0 < x < 1:
        return x
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d or tiny)
    value = d
    for m in range(1, 1000):
        for part in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + part * d) or tiny)
            c = (1 + part / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value


def _reached(p: float, freedom: float) -> float:
    """The t beyond which so much lies."""
    low, high = 0.0, 1.0
    while beyond(high, freedom) > p:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle, freedom) > p else (low, middle)
    return high
