"""How long a run takes: predicted before it starts, and what is left of it while it runs. In: what `pipelines.takes`
knows of the stages that are to run. Out: seconds, and words.

What stages that run side by side take is added up: on one machine they share it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from omniloom.pipelines import takes
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.views.events import about


class Remaining:
    """`seconds` has each stage that is to run; None where nothing is known of it."""

    def __init__(self, seconds: Mapping[str, float | None]):
        self.seconds = dict(seconds)
        self.done: set[str] = set()

    @classmethod
    def of(cls, plan: Plan) -> Remaining:
        found = takes.of(plan)
        return cls({p.name: found[p.name].seconds if p.name in found else None for p in plan.to_execute})

    def line(self) -> str:
        """What is predicted, and of which stages nothing is."""
        known = {name: seconds for name, seconds in self.seconds.items() if seconds is not None}
        unknown = [name for name, seconds in self.seconds.items() if seconds is None]
        if not known:
            return "predicted: nothing yet; how long these stages take here is known once they ran here"
        parts = ", ".join(f"{name} {about(seconds)}" for name, seconds in known.items())
        rest = f"; not known yet: {', '.join(unknown)}" if unknown else ""
        return f"predicted: {about(sum(known.values()))} ({parts}){rest}"

    def end(self, stages: Iterable[str]) -> None:
        """These are done, or need not run any more."""
        self.done |= set(stages) & self.seconds.keys()

    def left(self, running: Mapping[str, tuple[float, float]]) -> float | None:
        """Seconds until all stages are done; None where one is left of which nothing is known. `running`: of a stage
        the seconds since it started, and those that its own pace says are left, infinity where it does not."""
        total = 0.0
        for name, predicted in self.seconds.items():
            if name in self.done:
                continue
            since, own = running.get(name, (0.0, math.inf))
            if math.isfinite(own):
                total += own
            elif predicted is None:
                return None
            else:
                total += max(0.0, predicted - since)
        return total
