"""What a run tells, from where its stages are: events that happen once, and counts between them. A view shows them, and
the run's log keeps them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any

from omniloom.pipelines.failures import Pruned
from omniloom.pipelines.remaining import Remaining
from omniloom.pipelines.runlog import RunLog
from omniloom.pipelines.tables import shown_metrics
from omniloom.pipelines.views.choice import chosen
from omniloom.pipelines.views.events import Count, Event, View, clock, told

_LOGGED_SECONDS = 10.0  # between two lines of one count in the log


class Display:
    """Use as a context manager around a run. `update` takes a ProgressBoard's states. What is shown goes to `log`,
    where there is one, as plain lines. `page` is the run's page in MLflow, once it is known. With `remaining` the time
    that is left of the whole run is told too."""

    def __init__(self, view: View | None = None, remaining: Remaining | None = None):
        self.view = view or chosen()
        self.remaining = remaining
        self.log: RunLog | None = None
        self.page: str | None = None
        self._started: dict[str, float] = {}
        self._first: dict[str, dict] = {}
        self._left: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._logged: dict[str, float] = {}
        self._noted: dict[str, int] = {}

    def __enter__(self) -> Display:
        self.view.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.view.__exit__(*exception)

    def note(self, text: str, stage: str | None = None, level: str = "info") -> None:
        self._tell(Event("note", text, stage, level))

    def start(self, stage: str, reason: str) -> None:
        self._started[stage] = time.monotonic()
        self._tell(Event("start", f"starting ({reason})", stage, fields={"reason": reason}))
        self._overall()

    def update(self, states: dict[str, dict]) -> None:
        for stage, state in states.items():
            if stage not in self._started:
                continue
            notes = state.get("notes", ())
            known = self._noted.get(stage, 0)
            for text in notes[known if known <= len(notes) else 0 :]:  # a board that was started again has forgotten
                self.note(text, stage)
            self._noted[stage] = len(notes)
            if says := state.get("says"):
                self._say(stage, says)
            elif "done" in state:
                self._count(stage, state)
        self._overall()

    def _count(self, stage: str, state: dict) -> None:
        rate, left = pace(self._first.setdefault(stage, state), state)
        self._left[stage] = left
        count = Count(state["done"], state["total"], state["unit"], rate, left, state["facts"])
        begins = self._said.pop(stage, None) is not None
        self.view.count(stage, count, begins)
        if begins or time.monotonic() - self._logged.get(stage, -math.inf) >= _LOGGED_SECONDS:
            self._log(f"{stage}: {count.text()}", stage)

    def _say(self, stage: str, text: str) -> None:
        if self._said.get(stage) == text:
            return
        self._said[stage] = text
        self._first.pop(stage, None)  # what is counted from here on has a rate of its own
        self._left.pop(stage, None)
        self._tell(Event("says", text, stage))

    def finish(self, stage: str, seconds: float, metrics: dict, summary: str | None = None) -> None:
        figures = {name: value for name, value in metrics.items() if isinstance(value, int | float | str)}
        words = f"done in {clock(seconds)}; {summary or shown_metrics(metrics, 5)}"
        self._end(Event("done", words, stage, fields={"seconds": seconds, "metrics": figures}))

    def fail(self, stage: str, error: Exception) -> None:
        how = "pruned" if isinstance(error, Pruned) else "failed"
        self._end(Event("failed", how, stage, "error" if how == "failed" else "info", {"error": str(error)}))

    def skip(self, stages: Iterable[str]) -> None:
        """These need not run any more."""
        if self.remaining:
            self.remaining.end(stages)

    def last(self, event: str, text: str, level: str = "info", **fields: Any) -> None:
        """A last word, once the run has ended."""
        self.view.last(Event(event, text, level=level, fields=fields))

    def _end(self, event: Event) -> None:
        self._tell(event)
        stage = str(event.stage)
        self._started.pop(stage, None)
        if event.event == "done":
            self.skip([stage])
        self._overall(ended=True)

    def _overall(self, ended: bool = False) -> None:
        if not self.remaining:
            return
        now = time.monotonic()
        running = {name: (now - began, self._left.get(name, math.inf)) for name, began in self._started.items()}
        left = self.remaining.left(running)
        self.view.overall(len(self.remaining.done), len(self.remaining.seconds), left, ended)

    def _tell(self, event: Event) -> None:
        self.view.tell(event)
        self._log(told(event), event.stage)

    def _log(self, text: str, stage: str | None) -> None:
        if stage:
            self._logged[stage] = time.monotonic()
        if self.log:
            self.log.write(text)


def pace(first: dict, state: dict) -> tuple[float, float]:
    """(what is done in a second since the state `first`, seconds left); (0, infinity) where that is not known yet."""
    seconds, done = state["time"] - first["time"], state["done"] - first["done"]
    if seconds <= 0 or done <= 0:
        return 0.0, math.inf
    return done / seconds, (state["total"] - state["done"]) * seconds / done
