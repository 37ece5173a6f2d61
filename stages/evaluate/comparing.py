"""Two evaluations held against each other, item by item. In: the items of both. Out: which figures are better, worse or
undecided, with their differences.

Pairs are of items that both measured. The test of a figure:
    shares of 0 and 1, weighing alike   McNemar's, exact: of the items that differ each way is as likely
    all others                          of signs: each item's difference is as likely either way; all 2^n of them up to
                                        13 items that differ, else 9,999 drawn by the seed
Over the figures p is adjusted by Holm's method: of two equal models one comparison in a hundred calls any figure
different. What is compared is two trained models on these items, not two recipes: another training by the same
recipe is another model, and its figures move with its seed. Recipes are compared by several trainings of each
(`stages.evaluate.over_seeds`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from omniloom.stages.evaluate.intervals import interval
from omniloom.stages.evaluate.items import Values
from omniloom.stages.evaluate.measures import named

Decision = Literal["better", "worse", "undecided"]
RISK = 0.01  # of calling any figure of two equal models different
_DRAWN = 9999
_ALL_SIGNS = 13
_ROOM = 1 << 19


@dataclass(frozen=True)
class Compared:
    """One figure of a first and a second evaluation: `difference` is second - first, over the `items` of both; `low`
    and `high` are its own 95% interval, `p` is adjusted for the number of figures. `decision` is of the second."""

    measure: str
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float
    items: int
    decision: Decision


@dataclass(frozen=True)
class Comparison:
    """`apart` are figures that only one of the two has, or no item of which both measured."""

    figures: tuple[Compared, ...]
    apart: tuple[str, ...] = ()

    @property
    def decision(self) -> Literal["better", "worse", "undecided", "mixed"]:
        """Of the second as a whole: better where a figure is and none is worse, and the other way round; mixed where
        both occur."""
        seen = {figure.decision for figure in self.figures} - {"undecided"}
        return "mixed" if len(seen) > 1 else seen.pop() if seen else "undecided"


def compare(
    first: Mapping[str, Values], second: Mapping[str, Values], names: Iterable[str] | None = None, seed: int = 0
) -> Comparison:
    """Of all figures that both have and of which one way is better, or of those `names`."""
    wanted = sorted(set(first) | set(second)) if names is None else list(names)
    pairs = {name: _paired(first[name], second[name]) for name in wanted if name in first and name in second}
    pairs = {name: pair for name, pair in pairs.items() if len(pair[0].ids) > 1 and way(name)}
    # A figure that no item differs in can say nothing, and does not count among those that are tested.
    raw = {name: _p(*pair, seed) for name, pair in pairs.items() if (pair[0].values != pair[1].values).any()}
    adjusted = holm(raw)
    found = tuple(_compared(name, *pair, adjusted.get(name, 1.0), seed) for name, pair in pairs.items())
    return Comparison(found, tuple(name for name in wanted if name not in pairs and way(name)))


def way(name: str) -> int:
    """1 where higher is better, -1 where lower is, 0 of what is no measure of a model."""
    figure = named(name)
    return {"higher": 1, "lower": -1, None: 0}[figure.better] if figure and figure.of_model else 0


def _paired(first: Values, second: Values) -> tuple[Values, Values]:
    """Those of the items that both have, in one order and with the same weights, without such as are no numbers."""
    one, other = first.by_item(), second.by_item()
    both = sorted(set(one.ids) & set(other.ids))
    if not both:
        return (empty := Values((), np.zeros(0), np.zeros(0))), empty
    places = [np.searchsorted(np.array(held.ids), np.array(both)) for held in (one, other)]
    a, b = (held.values[at] for held, at in zip((one, other), places, strict=True))
    weights = sum(held.weights[at] / held.weights[at].sum() for held, at in zip((one, other), places, strict=True)) / 2
    kept = np.isfinite(a) & np.isfinite(b)
    ids = tuple(item for item, keep in zip(both, kept, strict=True) if keep)
    return Values(ids, a[kept], weights[kept]), Values(ids, b[kept], weights[kept])


def _compared(name: str, first: Values, second: Values, p: float, seed: int) -> Compared:
    difference = Values(first.ids, second.values - first.values, first.weights)
    ends = interval(difference, seed) if difference.values.any() else (0.0, 0.0)
    decision: Decision = "undecided"
    if p < RISK and difference.mean:
        decision = "better" if difference.mean * way(name) > 0 else "worse"
    low, high = ends or (None, None)
    return Compared(name, first.mean, second.mean, difference.mean, low, high, p, len(first.ids), decision)


def _p(first: Values, second: Values, seed: int) -> float:
    """Of the two-sided test that the items' differences are as likely either way."""
    differs = first.values != second.values
    parts = ((second.values - first.values) * first.weights)[differs]
    shares = np.isin(first.values, (0, 1)).all() and np.isin(second.values, (0, 1)).all()
    if shares and np.allclose(first.weights, first.weights[0]):
        return mcnemar(int((parts > 0).sum()), int((parts < 0).sum()))
    return _by_signs(parts, seed)


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p of so many items gained and lost."""
    count, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count)


def _by_signs(parts: np.ndarray, seed: int) -> float:
    """p of |sum| among sums under other signs, of all or of those drawn and the one seen."""
    least = abs(parts.sum()) * (1 - 1e-12)
    if len(parts) <= _ALL_SIGNS:
        signs = 1 - 2 * ((np.arange(1 << len(parts))[:, None] >> np.arange(len(parts))) & 1)
        return float(np.mean(abs(signs @ parts) >= least))
    rng, reached = np.random.default_rng((seed, 22)), 0
    for at in range(0, _DRAWN, step := max(1, _ROOM // len(parts))):
        tries = min(step, _DRAWN - at)
        bits = np.unpackbits(np.frombuffer(rng.bytes(tries * -(-len(parts) // 8)), np.uint8).reshape(tries, -1), axis=1)
        kept = bits[:, : len(parts)].astype(np.float64) @ parts
        reached += int((abs(2 * kept - parts.sum()) >= least).sum())
    return (reached + 1) / (_DRAWN + 1)


def holm(raw: Mapping[str, float]) -> dict[str, float]:
    """p by name, adjusted by Holm's step-down method (Scandinavian Journal of Statistics 6, 1979)."""
    found, least = {}, 0.0
    for number, (name, p) in enumerate(sorted(raw.items(), key=lambda pair: pair[1])):
        least = max(least, min(1.0, p * (len(raw) - number)))
        found[name] = least
    return found
