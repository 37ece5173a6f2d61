"""Where captions are parted into right and wrong, from the scores alone: nobody has to say which are wrong.

In: scores of pictures with the captions that they have, (N,), and with others' captions, (M,), drawn at random. Out:
the share of the captions that are wrong, and the score below which a caption goes.

A wrong caption scores as another picture's does, so the scores are a mixture of right ones and, by a share p, of the
others' distribution F0. Hardly a right one lies below the median of F0, so that p is about F(median) / F0(median)
(Storey, JRSS B 64, 2002, equation 6). Cut at t, p (1 - F0(t)) of the wrong ones stay and F(t) - p F0(t) right ones go;
the threshold is where both together are least.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parting:
    """`wrong`: the estimated share of wrong captions. `threshold`: below it a caption goes. `found` and `false`: the
    estimated shares of the wrong ones that go, and of the right ones."""

    wrong: float
    threshold: float
    found: float
    false: float


def part(own: np.ndarray, others: np.ndarray, threshold: float | None = None) -> Parting:
    """With a `threshold` that is given, what it is estimated to do. ValueError without scores."""
    if not len(own) or not len(others):
        raise ValueError(f"scores: expected some of both kinds, got {len(own)} and {len(others)}")
    own, others = np.sort(own), np.sort(others)
    median = float(np.median(others))
    below = np.searchsorted(others, median, "right") / len(others)
    wrong = min(1.0, float(np.searchsorted(own, median, "right") / len(own) / below))
    if threshold is None:
        # Between two neighbours all cuts part alike: one in the middle, and one below all.
        cuts = np.concatenate([[np.nextafter(own[0], -np.inf)], (own[1:] + own[:-1]) / 2])
        errors = _share(own, cuts) - 2 * wrong * _share(others, cuts)
        threshold = float(cuts[np.argmin(errors)])
    gone, gone_others = float(_share(own, threshold)), float(_share(others, threshold))
    false = (gone - wrong * gone_others) / (1 - wrong) if wrong < 1 else 0.0
    return Parting(wrong, threshold, gone_others, min(1.0, max(0.0, false)))


def _share(ordered: np.ndarray, cuts: np.ndarray | float) -> np.ndarray:
    """The share of the values, which are in order, below each cut."""
    return np.searchsorted(ordered, cuts, "left") / len(ordered)
