"""Ahead: the processes of a training's body and ranks, started while the stage before it ends
(`infra.training.ready`). The body's serves all stages from there on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

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
        self._trained = False  # whether a training has started

    def environment(self) -> dict[str, Any] | None:
        """The runtime environment of the body that starts next: from the first training on that of trainings, whose
        process then has what the others import too, and is free."""
        return ready.body_environment() if self._trained else None

    def start(self, planned: PlannedStage, running: Iterable[str]) -> None:
        """A stage starts beside those that run: its own ranks are asked for, and, as it may be short and the CPUs are
        not all busy, those that wait for a stage that is no training."""
        if workers_of(planned):
            self._trained = True
            self._ask(planned, body=False)  # it begins
            return
        for waiting in self._next({*running, planned.name}):
            if planned.name in self.plan.graph.ancestors(waiting.name):
                self._ask(waiting, body=not self._trained)

    def look(self, running: Iterable[str], states: Mapping[str, dict]) -> None:
        """Ask for the ranks of the trainings that wait for nothing but stages that end soon."""
        names = set(running)
        left = {name: self._left(name, states.get(name, {})) for name in names}
        for waiting in self._next(names):
            if max((left[name] for name in names & self.plan.graph.ancestors(waiting.name)), default=0.0) < _SECONDS:
                self._ask(waiting, body=not self._trained)  # else that of what runs is free soon

    def _next(self, running: set[str]) -> list[PlannedStage]:
        """The trainings that wait for nothing but what runs."""
        pending = {planned.name for planned in self.plan.to_execute} - running
        return [
            planned
            for planned in self.plan.to_execute
            if planned.name in pending and workers_of(planned) and not pending & self.plan.graph.ancestors(planned.name)
        ]

    def _left(self, name: str, state: dict) -> float:
        if "done" not in state:
            self._first.pop(name, None)
            return float("inf")
        return pace(self._first.setdefault(name, state), state)[1]

    def _ask(self, planned: PlannedStage, body: bool) -> None:
        now = time.monotonic()
        if now - self._asked.get(planned.name, -ready.KEPT_SECONDS) < ready.KEPT_SECONDS:
            return
        self._asked[planned.name] = now
        if workers := workers_of(planned):
            _send(workers, body)


def _send(workers: WorkersConfig, body: bool) -> None:
    """Beside what the driver does: a machine that is gone does not answer."""

    def send() -> None:
        with contextlib.suppress(Exception):  # a Ray that is gone is told of elsewhere
            ready.start(workers, body)

    threading.Thread(target=send, daemon=True, name="ready").start()


def workers_of(planned: PlannedStage) -> WorkersConfig | None:
    """The ranks of a stage that trains; None of another."""
    workers = getattr(planned.config, "workers", None)
    return workers if isinstance(workers, WorkersConfig) else None
