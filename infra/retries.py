"""Retries: whether what died of no fault of its own is tried again, and after which pause.

Failures count in a row: one that came after progress is the first again, so that work of weeks survives any number of
them, and what dies at the same place each time ends.
"""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST_PAUSE = 60.0


@dataclass
class Retries:
    """`limit` failures in a row are allowed. `reached` says how much was done when it failed last."""

    limit: int
    reached: int
    failures: int = 0  # in a row
    total: int = 0

    def failed(self, reached: int) -> float | None:
        """Note a failure, with what is done by now; the seconds to wait before the next try, None where there is
        none."""
        self.failures = 1 if reached > self.reached else self.failures + 1
        self.reached = max(reached, self.reached)
        self.total += 1
        return None if self.failures > self.limit else min(2.0 ** (self.failures - 1), _LONGEST_PAUSE)

    @property
    def told(self) -> str:
        """Which restart this is, in words."""
        before = f", {self.total} in all" if self.total > self.failures else ""
        return f"restart {self.failures} of {self.limit}{before}"

    @property
    def often(self) -> str:
        return f"{self.failures} times in a row" if self.failures > 1 else "once"
