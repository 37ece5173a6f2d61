"""A curve through the losses of trainings: L(N, D) = E + A N^-a + B D^-b (arXiv 2203.15556, eq. 2) of N parameters and
D targets. In: what trainings came to. Out: laws, and the laws of resamples, whose spread is that of a prediction.

As published (section 3.3 and eq. 3 there): the Huber loss of the difference of logarithms, its bend at 1e-3, minimised
by L-BFGS from many starts, with E, A and B as exponentials. Here N and D are relative to their geometric means while it
searches, and exponents lie between 0.01 and 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_BEND = 1e-3
_EXPONENTS = (0.01, 3.0)
_STARTS = (0.2, 0.5, 1.0), (0.2, 0.5, 1.0), (0.1, 0.5, 0.9)  # a, b, and E as a share of the least loss


@dataclass(frozen=True)
class Law:
    """E, A, a, B, b of the formula."""

    floor: float
    size: float
    size_power: float
    data: float
    data_power: float

    @property
    def knows(self) -> dict[str, bool]:
        """Whether a power was found, and not an end of what the search allows."""
        low, high = _EXPONENTS
        powers = {"size": self.size_power, "data": self.data_power}
        return {name: low * 1.01 < power < high * 0.99 for name, power in powers.items()}

    def __str__(self) -> str:
        size, data = f"{self.size:.4g} N^-{self.size_power:.3g}", f"{self.data:.4g} D^-{self.data_power:.3g}"
        return f"{self.floor:.4g} + {size} + {data}"

    def __call__(self, parameters: Any, targets: Any) -> Any:
        """The loss, of numbers or arrays."""
        return self.floor + self.size * parameters**-self.size_power + self.data * targets**-self.data_power


@dataclass(frozen=True)
class Fitted:
    """The law of all trainings, and those of resamples of them."""

    law: Law
    resampled: Sequence[Law]

    def interval(self, parameters: float, targets: float) -> tuple[float, float]:
        """95% of the resamples' predictions."""
        found = [float(law(parameters, targets)) for law in self.resampled]
        low, high = np.percentile(found, (2.5, 97.5)) if found else (math.nan, math.nan)
        return float(low), float(high)


def fit(parameters: Sequence[float], targets: Sequence[float], losses: Sequence[float]) -> Law:
    """The law of trainings, a number each. ValueError where there are fewer than three sizes or two amounts of data, or
    a loss that is not positive."""
    return _search(*_checked(parameters, targets, losses), _starts(losses))[0][1]


def fit_resampled(
    parameters: Sequence[float], targets: Sequence[float], losses: Sequence[float], resamples: int, seed: int
) -> Fitted:
    """The same, with so many resamples with replacement; those that determine no law are drawn again."""
    data = _checked(parameters, targets, losses)
    found = _search(*data, _starts(losses))
    starts = [found[0][2]]  # a resample's law is near that of all
    rng = np.random.default_rng(seed)
    laws: list[Law] = []
    for _ in range(20 * resamples):
        if len(laws) == resamples:
            break
        chosen = rng.integers(len(losses), size=len(losses))
        n, d, losses_ = (values[chosen] for values in data)
        if _is_enough(n, d):
            laws.append(_search(n, d, losses_, starts)[0][1])
    return Fitted(found[0][1], laws)


def _is_enough(parameters: np.ndarray, targets: np.ndarray) -> bool:
    return len(set(parameters.tolist())) >= 3 and len(set(targets.tolist())) >= 2 and len(parameters) >= 5


def _checked(
    parameters: Sequence[float], targets: Sequence[float], losses: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = tuple(np.asarray(values, dtype=np.float64) for values in (parameters, targets, losses))
    if not all(np.isfinite(values).all() and (values > 0).all() for values in arrays):
        raise ValueError("expected positive numbers")
    if not _is_enough(*arrays[:2]):
        raise ValueError("expected five trainings or more, of three sizes and two amounts of data at least")
    return arrays[0], arrays[1], arrays[2]


def _starts(losses: Sequence[float]) -> list[np.ndarray]:
    """(log E, log A, log B, a, b) with N and D in units of their means: what is above the floor is half of each."""
    least, most = min(losses), max(losses)
    made = []
    for size, data, share in itertools.product(*_STARTS):
        rest = max(most - share * least, 1e-6 * most) / 2
        made.append(np.array([math.log(share * least), math.log(rest), math.log(rest), size, data]))
    return made


def _search(
    parameters: np.ndarray, targets: np.ndarray, losses: np.ndarray, starts: Sequence[np.ndarray]
) -> list[tuple[float, Law, np.ndarray]]:
    """(what is left, the law, where it was found) by start, the best first."""
    from scipy.optimize import minimize

    units = [math.exp(float(np.log(values).mean())) for values in (parameters, targets)]
    logs = np.log(parameters / units[0]), np.log(targets / units[1])
    bounds = [(None, None)] * 3 + [_EXPONENTS] * 2
    found = []
    for start in starts:
        made = minimize(
            _left, start, (*logs, np.log(losses)), "L-BFGS-B", True, bounds=bounds, options={"maxiter": 500}
        )
        e, a, b, p, q = map(float, made.x)
        law = Law(math.exp(e), math.exp(a + p * math.log(units[0])), p, math.exp(b + q * math.log(units[1])), q)
        found.append((float(made.fun), law, made.x))
    return sorted(found, key=lambda one: one[0])


def _left(x: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_losses: np.ndarray) -> tuple[float, np.ndarray]:
    """The sum of Huber losses, and its gradient."""
    terms = np.stack([np.full_like(log_n, x[0]), x[1] - x[3] * log_n, x[2] - x[4] * log_d])
    top = terms.max(0)
    shares = np.exp(terms - top)
    total = shares.sum(0)
    shares /= total
    error = top + np.log(total) - log_losses
    size = np.abs(error)
    huber = np.where(size <= _BEND, 0.5 * error**2, _BEND * (size - 0.5 * _BEND))
    slope = np.clip(error, -_BEND, _BEND) * shares
    gradient = [*slope.sum(1), -(slope[1] * log_n).sum(), -(slope[2] * log_d).sum()]
    scale = 1 / _BEND**2  # so that what is left is a number of a size that the search stops by
    return float(huber.sum()) * scale, np.array(gradient) * scale
