"""CIDEr-D of captions (Vedantam, Zitnick, Parikh, arXiv 1411.5726, section 4 and equation 9; n = 1 to 4, sigma = 6).

In: of each picture what was written, and its captions. Out: a score a picture, from 0 to 10; the figure is their mean.
Words are lower case, without punctuation. How rare a run of words is, the captions of these pictures tell: a figure
depends on which pictures it is of, and that of one picture alone, where nothing is rare, is 0.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_LONGEST, _SIGMA = 4, 6.0
_Runs = Counter[tuple[str, ...]]


def cider(written: Sequence[str], captions: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) of N texts and the captions of their pictures, at least one each."""
    own = [_runs(text) for text in written]
    references = [[_runs(text) for text in texts] for texts in captions]
    seen: _Runs = Counter(run for texts in references for run in set().union(*texts))
    weight = {run: math.log(len(references)) - math.log(count) for run, count in seen.items()}
    most = math.log(len(references)) if references else 0.0  # of a run that no caption has
    return np.array(
        [
            10 * float(np.mean([_likeness(text, other, weight, most) for other in others]))
            for text, others in zip(own, references, strict=True)
        ]
    )


def _runs(text: str) -> _Runs:
    words = re.findall(r"\w+", text.lower())
    return Counter(tuple(words[at : at + n]) for n in range(1, _LONGEST + 1) for at in range(len(words) - n + 1))


def _likeness(text: _Runs, other: _Runs, weight: dict[tuple[str, ...], float], most: float) -> float:
    """Mean over lengths of runs of the cosine of both, what the text says too often cut off, less for another length
    (counted in runs of two words, as the published code does)."""
    found = 0.0
    longer = sum(count * (len(run) == 2) for run, count in text.items())
    longer -= sum(count * (len(run) == 2) for run, count in other.items())
    for n in range(1, _LONGEST + 1):
        a, b = (
            {run: count * weight.get(run, most) for run, count in runs.items() if len(run) == n}
            for runs in (text, other)
        )
        together = sum(min(value, b[run]) * b[run] for run, value in a.items() if run in b)
        sizes = math.sqrt(sum(value**2 for value in a.values())) * math.sqrt(sum(value**2 for value in b.values()))
        found += together / sizes if sizes else together
    return found / _LONGEST * math.exp(-(longer**2) / (2 * _SIGMA**2))
