"""Ahead: the processes of a training's ranks, started while the stage before it ends (`infra.training.ready`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping

from omniloom.infra.training import ready
from omniloom.infra.training.config import WorkersConfig
from omniloom.pipelines.display import pace
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.planned import PlannedStage

_SECONDS = 20.0  # before a stage's end: importing takes less, also where all CPUs are busy


class Ahead:
    """Asks for the processes of the trainings of one run. Call `start` where a stage starts, `look` now and then."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._first: dict[str, dict] = {}
        self._asked: dict[str, float] = {}

    def start(self, planned: PlannedStage, running: Iterable[str]) -> None:
        """A stage starts beside those that run: its own ranks are asked for, and, as it may be short and the CPUs are
        not all busy, those that wait for a stage that is no training."""
        if _workers(planned):
            self._ask(planned)
            return
        for waiting in self._next({*running, planned.name}):
            if planned.name in self.plan.graph.ancestors(waiting.name):
                self._ask(waiting)

    def look(self, running: Iterable[str], states: Mapping[str, dict]) -> None:
        """Ask for the ranks of the trainings that wait for nothing but stages that end soon."""
        names = set(running)
        left = {name: self._left(name, states.get(name, {})) for name in names}
        for waiting in self._next(names):
            if max((left[name] for name in names & self.plan.graph.ancestors(waiting.name)), default=0.0) < _SECONDS:
                self._ask(waiting)

    def _next(self, running: set[str]) -> list[PlannedStage]:
        """The trainings that wait for nothing but what runs."""
        pending = {planned.name for planned in self.plan.to_execute} - running
        return [
            planned
            for planned in self.plan.to_execute
            if planned.name in pending and _workers(planned) and not pending & self.plan.graph.ancestors(planned.name)
        ]

    def _left(self, name: str, state: dict) -> float:
        if "done" not in state:
            self._first.pop(name, None)
            return float("inf")
        return pace(self._first.setdefault(name, state), state)[1]

    def _ask(self, planned: PlannedStage) -> None:
        now = time.monotonic()
        if now - self._asked.get(planned.name, -ready.KEPT_SECONDS) < ready.KEPT_SECONDS:
            return
        self._asked[planned.name] = now
        if workers := _workers(planned):
            _send(workers)


def _send(workers: WorkersConfig) -> None:
    """In a task, whose process is the next body's with all that it has imported."""
    import ray

    with contextlib.suppress(Exception):  # a Ray that is gone is told of elsewhere
        ray.remote(ready.start).options(num_cpus=0, max_retries=0, name="ready").remote(workers)


def _workers(planned: PlannedStage) -> WorkersConfig | None:
    workers = getattr(planned.config, "workers", None)
    return workers if isinstance(workers, WorkersConfig) else None
