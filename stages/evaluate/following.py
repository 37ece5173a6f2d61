"""Whether what is drawn goes with the words: counterfactual captions under one seed. In: an `Evaluation`. Out: pairs of
held-out pictures, and which of their drawings went with their captions.

Two held-out pictures with different captions are taken as a pair; both captions are drawn from the same noise. The
picture follows its words where the two drawings lie nearer to their own pictures than crosswise:
    d(drawn a, real a)^2 + d(drawn b, real b)^2 < d(drawn a, real b)^2 + d(drawn b, real a)^2
A model that does not read draws the same picture twice: a tie, which counts half, as a guess does.
"""

from __future__ import annotations

import numpy as np

from omniloom.stages.evaluate.evaluation import Evaluation


def pairs(evaluation: Evaluation) -> list[tuple[int, int]]:
    """Held-out pictures, by index: each with the next of the draw that has another caption and another label."""
    order = evaluation.labelled or evaluation.captioned
    found = []
    for number, first in enumerate(order[: evaluation.config.counterfactuals]):
        others = (order[(number + step) % len(order)] for step in range(1, len(order)))
        if (second := next((other for other in others if _differ(evaluation, first, other)), None)) is not None:
            found.append((first, second))
    return found


def _differ(evaluation: Evaluation, first: int, second: int) -> bool:
    labels = [evaluation.labels[i] for i in (first, second)]
    return evaluation.captions[first] != evaluation.captions[second] and (None in labels or labels[0] != labels[1])


def followed(drawn: tuple[np.ndarray, np.ndarray], real: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Of pairs of features, (N, D) each, 1 where the drawings lie nearer to their own pictures, 0 where crosswise, and
    a half of a tie."""
    # |a - x|^2 + |b - y|^2 - |a - y|^2 - |b - x|^2 = -2 (a - b) . (x - y)
    together = ((drawn[0] - drawn[1]) * (real[0] - real[1])).sum(axis=1)
    return np.where(np.isfinite(together), (np.sign(together) + 1) / 2, np.nan)
