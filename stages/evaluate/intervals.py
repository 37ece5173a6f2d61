"""How far a figure is known: the interval that a bootstrap over its items gives.

In: the `Values` of a figure. Out: (low, high), by the BCa method (Efron and Tibshirani, An Introduction to the
Bootstrap, chapter 14): percentiles of the figure over resampled items, shifted by the median bias and by the skewness
that a jackknife finds. Rows of one item come and go together.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from omniloom.stages.evaluate.figure import HIGH, LOW
from omniloom.stages.evaluate.items import Values

LEVEL = 0.95
RESAMPLES = 2000
_ROOM = 1 << 20  # resampled items in memory at a time
_NORMAL = NormalDist()


def intervals(items: Mapping[str, Values], seed: int) -> dict[str, float]:
    """NAME_low and NAME_high of every figure that has an interval."""
    found: dict[str, float] = {}
    for name, values in items.items():
        if (ends := interval(values, seed)) is not None:
            found |= {name + LOW: ends[0], name + HIGH: ends[1]}
    return found


def interval(values: Values, seed: int, level: float = LEVEL) -> tuple[float, float] | None:
    """None of fewer than two items, and where a value is no number."""
    held = values.by_item()
    if len(held.ids) < 2 or not np.isfinite(held.values).all():
        return None
    if (held.values == held.values[0]).all():
        return _of_equal(float(held.values[0]), len(held.ids), level)
    sums, weights = held.values * held.weights, held.weights
    drawn = _resampled(sums, weights, seed)
    whole = sums.sum() / weights.sum()
    below = (np.mean(drawn < whole) + np.mean(drawn <= whole)) / 2
    left_out = (sums.sum() - sums) / (weights.sum() - weights)
    part = left_out.mean() - left_out
    skewness = float((part**3).sum() / (6 * (part**2).sum() ** 1.5)) if part.any() else 0.0
    shift = _NORMAL.inv_cdf(float(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES)))
    ends = [_moved(_NORMAL.inv_cdf(end), shift, skewness) for end in ((1 - level) / 2, (1 + level) / 2)]
    low, high = np.quantile(drawn, ends)
    return float(low), float(high)


def _moved(end: float, shift: float, skewness: float) -> float:
    """The share of the resampled figures below an end of the interval (equation 14.10)."""
    return _NORMAL.cdf(shift + (shift + end) / (1 - skewness * (shift + end)))


def _resampled(sums: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """The figure of as many items drawn with replacement, (RESAMPLES,)."""
    count = len(sums)
    rng = np.random.default_rng((seed, 21))
    parts = []
    for at in range(0, RESAMPLES, step := max(1, _ROOM // count)):
        chosen = rng.integers(0, count, (min(step, RESAMPLES - at), count), np.int32)
        parts.append(sums[chosen].sum(axis=1) / weights[chosen].sum(axis=1))
    return np.concatenate(parts)


def _of_equal(value: float, count: int, level: float) -> tuple[float, float]:
    """Of items that are all equal a bootstrap knows nothing but that value. Where it is 0 or 1 the exact bound of a
    share (Clopper and Pearson) stands for the side that was not seen."""
    unseen = ((1 - level) / 2) ** (1 / count)
    if value == 1.0:
        return unseen, 1.0
    return (0.0, 1 - unseen) if value == 0.0 else (value, value)
