"""Retrieval: how often a picture's own caption comes first among others. In: similarities. Out: a value a picture."""

from __future__ import annotations

from collections.abc import Sequence
from math import lgamma

import numpy as np


def distinct_captions(captions: Sequence[Sequence[str]]) -> list[str]:
    """All that are said of the pictures, each once."""
    return list(dict.fromkeys(caption for own in captions for caption in own))


def recall_at_1(
    similarities: np.ndarray, captions: Sequence[Sequence[str]], distinct: Sequence[str], count: int
) -> tuple[np.ndarray, int]:
    """For each picture the probability that its first caption is the nearest of `count`, the others drawn from the
    distinct ones that are not said of it: (N,) in [0, 1], and the count, less where there are fewer. The mean over all
    draws, so that no draw adds noise. A tie counts as lost.

    similarities  (N, M) of the pictures and the distinct captions
    """
    numbers = {caption: number for number, caption in enumerate(distinct)}
    others = [len(distinct) - len(set(own)) for own in captions]
    drawn = min([count - 1, *others])
    found = []
    for row, own, rest in zip(similarities, captions, others, strict=True):
        is_other = np.ones(len(distinct), bool)
        is_other[[numbers[caption] for caption in own]] = False
        ahead = int((row[is_other] >= row[numbers[own[0]]]).sum())
        found.append(_none_of(ahead, rest, drawn))
    return np.array(found), drawn + 1


def _none_of(ahead: int, total: int, drawn: int) -> float:
    """The probability that none of `ahead` is among `drawn` of `total`: C(total - ahead, drawn) / C(total, drawn)."""
    if total - ahead < drawn:
        return 0.0
    log = lgamma(total - ahead + 1) - lgamma(total - ahead - drawn + 1) - lgamma(total + 1) + lgamma(total - drawn + 1)
    return float(np.exp(log))
