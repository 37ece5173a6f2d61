"""Figures of two sets of features, of real and of drawn pictures: (N, D) and (M, D), computed in float64.

What a figure is a mean of comes with it, so that it gets its interval (`stages.evaluate.items`): of a distance the part
of each row by first order, whose mean on each side is 0; of a share what each row is.
    Kernel distances   the squared maximum mean discrepancy of two kernels; the part of x is
                       2 (mean k(x, own others) - mean k(x, others)), less its mean
    Manifolds          balls around the rows of one set up to their k-th neighbour in it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from omniloom.stages.evaluate.metrics import distances

_BLOCK = 512  # rows of a matrix of pairs at a time
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
MANIFOLD_NEIGHBOURS = 3  # of precision and recall, as published
DENSITY_NEIGHBOURS = 5  # of density and coverage, as published

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Distance:
    """`value`, and what each real, (N,), and each drawn row, (M,), adds to it."""

    value: float
    of_real: np.ndarray
    of_drawn: np.ndarray


def cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """KID's kernel: (a.b / D + 1)^3 (arXiv 1801.01401, section 4)."""
    return (a @ b.T / a.shape[1] + 1.0) ** 3


def gaussian(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """CMMD's kernel: exp(-|a - b|^2 / (2 sigma^2)) (arXiv 2401.09603)."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.exp(-squares / (2 * CMMD_SIGMA**2))


def kernel_distance(real: np.ndarray, drawn: np.ndarray, kernel: Kernel, unbiased: bool) -> Distance:
    """The squared discrepancy. `unbiased`: without the pairs of a row and itself (Gretton et al., JMLR 13, lemma 6),
    which may be below 0; else with them (its equation 5)."""
    sets = [np.asarray(x, np.float64) for x in (real, drawn)]
    if min(map(len, sets)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 rows on both sides, got {len(real)} and {len(drawn)}")
    across = [np.zeros(len(x)) for x in sets]
    within = []
    for side, x in enumerate(sets):
        sums, own = np.zeros(len(x)), np.zeros(len(x))
        for at in range(0, len(x), _BLOCK):
            rows = x[at : at + _BLOCK]
            inner = kernel(rows, x)
            own[at : at + len(rows)] = inner[np.arange(len(rows)), np.arange(at, at + len(rows))]
            sums[at : at + len(rows)] = inner.sum(1)
            if side == 0:
                outer = kernel(rows, sets[1])
                across[0][at : at + len(rows)] = outer.sum(1)
                across[1] += outer.sum(0)
        within.append((sums - own) / (len(x) - 1) if unbiased else sums / len(x))
    across = [total / len(other) for total, other in zip(across, reversed(sets), strict=True)]
    parts = [2 * (near - far) for near, far in zip(within, across, strict=True)]
    value = within[0].mean() + within[1].mean() - 2 * across[0].mean()
    return Distance(float(value), *(part - part.mean() for part in parts))


def kid(real: np.ndarray, drawn: np.ndarray, subsets: int, size: int, rng: Any) -> tuple[Distance, np.ndarray]:
    """The kernel inception distance: the mean over subsets of so many rows of each side, drawn without replacement by
    `rng.choice`, and the distances of the subsets, (S,). Subsets as large as both sets are the sets themselves."""
    whole = kernel_distance(real, drawn, cubic, unbiased=True)
    if size >= max(len(real), len(drawn)):
        return whole, np.array([whole.value])
    found = []
    for _ in range(subsets):
        a, b = (x[rng.choice(len(x), min(size, len(x)), replace=False)] for x in (real, drawn))
        found.append(kernel_distance(a, b, cubic, unbiased=True).value)
    return Distance(float(np.mean(found)), whole.of_real, whole.of_drawn), np.array(found)


def cmmd(real: np.ndarray, drawn: np.ndarray) -> Distance:
    """Of embeddings, which are divided by their lengths: CMMD_SCALE times the biased squared discrepancy."""
    found = kernel_distance(unit(real), unit(drawn), gaussian, unbiased=False)
    return Distance(CMMD_SCALE * found.value, CMMD_SCALE * found.of_real, CMMD_SCALE * found.of_drawn)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows divided by their lengths, in float64."""
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def precision(real: np.ndarray, drawn: np.ndarray, neighbours: int = MANIFOLD_NEIGHBOURS) -> np.ndarray:
    """Of each drawn row whether it lies in the ball of a real one, up to its k-th real neighbour: bool (M,)
    (Kynkäänniemi et al., arXiv 1904.06991, equation 1). With the sides exchanged it is the recall, of real rows."""
    radii = _radii(real, neighbours)
    return np.concatenate([(far <= radii).any(1) for far in _by_rows(drawn, real)])


def density(real: np.ndarray, drawn: np.ndarray, neighbours: int = DENSITY_NEIGHBOURS) -> np.ndarray:
    """Of each drawn row how many real balls it lies in, over k: (M,) (Naeem et al., arXiv 2002.09797, equation 3). Its
    mean may be above 1."""
    radii = _radii(real, neighbours)
    return np.concatenate([(far < radii).sum(1) / neighbours for far in _by_rows(drawn, real)])


def _radii(points: np.ndarray, neighbours: int) -> np.ndarray:
    if len(points) <= neighbours:
        raise ValueError(f"expected more than {neighbours} rows, got {len(points)}")
    found = []
    for at, far in enumerate(_by_rows(points, points)):
        rows = np.arange(len(far))
        far[rows, at * _BLOCK + rows] = np.inf  # a row is no neighbour of its own
        found.append(np.partition(far, neighbours - 1, axis=1)[:, neighbours - 1])
    return np.concatenate(found)


def _by_rows(a: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
    """Distances of some rows of a at a time to all of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    for at in range(0, len(a), _BLOCK):
        yield distances(a[at : at + _BLOCK], b)
