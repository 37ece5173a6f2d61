"""What a tokenizer's latents are like, as figures of arrays. In: latents of N pictures, (N, C, h, w) or flat (N, D),
float. Out: numbers; None where the latents are too few or have no such axis.

Each is a candidate for foretelling how good a generator that is trained on the latents becomes; none of them needs one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from omniloom.stages.evaluate.metrics import distances

_TIMES = 16  # of the velocity's variance, the midpoints of as many equal parts of (0, 1)
_DRAWS = 256  # noisy latents a time
_KEPT = 0.9  # of the ratios that the intrinsic dimension is fitted to
_ROOM = 1 << 22  # numbers of a table of distances that is held at a time


def standardized(latents: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """float64, of mean 0 and variance 1 over `axis`; what never changes is 0."""
    x = latents.astype(np.float64)
    x = x - x.mean(axis, keepdims=True)
    deviation = x.std(axis, keepdims=True)
    return np.divide(x, deviation, out=np.zeros_like(x), where=deviation > 1e-9)


def nearest(rows: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Of each row (N, D) the `count` nearest other ones: their numbers and distances, (N, count), the nearest first."""
    places, found_at = [], []
    step = max(1, _ROOM // len(rows))
    for at in range(0, len(rows), step):
        table = distances(rows[at : at + step], rows)
        table[np.arange(len(table)), np.arange(at, at + len(table))] = np.inf
        found = np.argpartition(table, count - 1, axis=1)[:, :count]
        held = np.take_along_axis(table, found, 1)
        order = np.argsort(held, axis=1, kind="stable")
        places.append(np.take_along_axis(found, order, 1))
        found_at.append(np.take_along_axis(held, order, 1))
    return np.concatenate(places), np.concatenate(found_at)


def velocity_variance(rows: np.ndarray, seed: int) -> float:
    """VIV (arXiv 2606.03578): the variance that a flow's velocity v = e - x keeps when x_t = (1 - t) x + t e is known,
    a dimension of D, averaged over times in (0, 1): what the best network cannot predict. rows (N, D), of unit
    variance.

    Over a finite set the posterior is exact: x_j has the weight of N(x_t; (1 - t) x_j, t^2), and Var(v | x_t) is
    Var(x | x_t) / t^2. Of normal rows that is the integral of 1 / ((1 - t)^2 + t^2), pi / 2. A set that is small for
    its dimensions gives less than the law that it is drawn from: compare sets of one size.
    """
    rng, total, dims = np.random.default_rng((seed, 31)), 0.0, rows.shape[1]
    norms = (rows**2).sum(1)
    for t in (np.arange(_TIMES) + 0.5) / _TIMES:
        chosen = rng.integers(0, len(rows), _DRAWS)
        noisy = (1 - t) * rows[chosen] + t * rng.standard_normal((_DRAWS, dims))
        logits = -(distances(noisy, (1 - t) * rows) ** 2) / (2 * t**2)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        mean = weights @ rows
        spread = np.maximum(weights @ norms - (mean**2).sum(1), 0)
        total += float(spread.mean()) / dims / t**2
    return total / _TIMES


def intrinsic_dimension(rows: np.ndarray) -> float | None:
    """By the two nearest neighbours (Facco et al., arXiv 1803.06992): the slope through the origin of
    -log(1 - F(m)) over log m, m the ratio of the second distance to the first, without the largest tenth. Rows that
    occur twice count once."""
    rows = np.unique(rows, axis=0)
    if len(rows) < 20:
        return None
    _, found = nearest(rows, 2)
    ratios = np.sort(found[:, 1] / np.maximum(found[:, 0], 1e-12))
    share = np.arange(1, len(ratios) + 1) / len(ratios)
    kept = int(_KEPT * len(ratios))
    x, y = np.log(ratios[:kept]), -np.log1p(-share[:kept])
    squared = float(x @ x)
    return float(x @ y) / squared if squared > 0 else None


def spectrum(latents: np.ndarray) -> np.ndarray | None:
    """Mean power by radial frequency, 1 to half the shorter side, of latents (N, C, h, w) of unit variance a channel.
    None of a grid with fewer than three frequencies."""
    _, _, h, w = latents.shape
    count = min(h, w) // 2
    if count < 3:
        return None
    x = standardized(latents, (0, 2, 3))
    power = (np.abs(np.fft.fft2(x)) ** 2 / (h * w)).mean((0, 1))
    rows, columns = np.fft.fftfreq(h) * min(h, w), np.fft.fftfreq(w) * min(h, w)
    radius = np.rint(np.hypot(rows[:, None], columns[None])).astype(int)
    return np.array([power[radius == r].mean() for r in range(1, count + 1)])


def spectrum_slope(power: np.ndarray | None) -> float | None:
    """Of log power over log frequency, by least squares: 0 of white noise, about -2 of natural pictures."""
    if power is None or (power <= 0).any():
        return None
    return float(np.polyfit(np.log(np.arange(1, len(power) + 1)), np.log(power), 1)[0])


def probe(
    train: np.ndarray, labels: Sequence[str], held: np.ndarray, true: Sequence[str], seed: int
) -> np.ndarray | None:
    """Whether a linear classifier of labels, trained on latents (N, D), names that of each held-out one, bool (M,): a
    logistic regression of standardized latents. None where there are fewer than two labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(labels)) < 2 or not len(held):
        return None
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200, random_state=seed % (1 << 32)))
    model.fit(train, list(labels))
    return model.predict(held) == np.asarray(list(true))
