"""Rhythm: how long the next stretch of work may take, learnt from those before it.

In: stretches (what lies between two beats) with their kinds and seconds. Out: for a kind, the seconds after which one
that has not ended counts as hung. A kind is what a stretch holds beside a step: a validation, a checkpoint, or both.
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque

_RECENT = 50  # stretches of a kind that are remembered
_LEARNT = {"": 5}  # plain steps that must have been seen; of another kind one is enough
# A checkpoint waits for the one before, whose files may be on their way to a storage that is slow or away.
_LEAST = {"checkpoint": 600.0}
_MEDIANS, _LONGEST, _FIRST = 10.0, 3.0, 2.0


class Rhythm:
    """`least` is the shortest silence, in seconds, that can count as a hang.

    A stretch may last 10 times the median and 3 times the longest of the recent ones of its kind, and twice the very
    first of all, in which a model compiles: later shapes may compile too.
    """

    def __init__(self, least: float):
        self.least = least
        self._first: float | None = None
        self._recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))

    def learn(self, kind: str, seconds: float) -> None:
        if self._first is None:
            self._first = seconds
        else:
            self._recent[kind].append(seconds)

    def limit(self, kind: str) -> float | None:
        """Seconds that a stretch of the kind may last; None where too few were seen to say."""
        recent = self._recent.get(kind, ())
        if self._first is None or len(recent) < _LEARNT.get(kind, 1):
            return None
        longest = max(_MEDIANS * statistics.median(recent), _LONGEST * max(recent), _FIRST * self._first)
        return max(self.least, *(_LEAST.get(part, 0.0) for part in kind.split("+")), longest)
