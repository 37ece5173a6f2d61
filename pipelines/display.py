"""What a run shows: in a terminal one bar per stage with rate and time left, in a log one plain line now and then."""

from __future__ import annotations

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

from omniloom.infra.secrets import redact
from omniloom.pipelines.runlog import RunLog
from omniloom.pipelines.tables import shown_metrics

_LINE_SECONDS = 10.0
_WIDE = 110  # columns from which a long bar leaves room for what it tells


class Display:
    """Use as a context manager around a run. `update` takes a ProgressBoard's states. What is shown goes to `log`,
    where there is one, as plain lines. `page` is the run's page in MLflow, once it is known. `part` gives the display
    of one run among several."""

    def __init__(self, console: Console | None = None, label: str = "", among: Progress | None = None):
        self.console = console or Console(stderr=True)
        self.label, self._among = label, among
        self.log: RunLog | None = None
        self.page: str | None = None
        self._bars: Progress | None = among
        self._tasks: dict[str, Any] = {}  # rich's TaskID
        self._started: dict[str, float] = {}
        self._first: dict[str, dict] = {}
        self._said: dict[str, str] = {}
        self._lines: dict[str, float] = {}
        self._noted: dict[str, int] = {}
        if self.console.is_terminal and among is None:
            # Only what is told last may shrink: at 80 columns all else is still whole.
            self._bars = Progress(
                TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True, min_width=15)),
                BarColumn(30 if self.console.width >= _WIDE else 10),
                TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True, min_width=4)),
                TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
                TextColumn("{task.fields[detail]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
                console=self.console,
                expand=True,
            )

    def part(self, label: str) -> Display:
        """The display of one run among several: `label` stands before its stages, and its bars go when it ends."""
        return Display(self.console, label, self._bars)

    def __enter__(self) -> Display:
        if self._bars and not self._among:
            self._bars.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bars and self._among:
            for task in self._tasks.values():
                self._bars.remove_task(task)
        elif self._bars:
            self._bars.stop()

    def note(self, text: str) -> None:
        self.console.print(redact(f"{self.label}{text}"), style="dim", highlight=False, soft_wrap=True)
        self._log(text)

    def start(self, stage: str, reason: str) -> None:
        self._started[stage] = time.monotonic()
        if self._bars:
            self._tasks[stage] = self._bars.add_task(
                f"{self.label}{stage}", total=None, detail=redact(f"starting ({reason})")
            )
        self._line(stage, f"starting ({reason})")

    def update(self, states: dict[str, dict]) -> None:
        for stage, state in states.items():
            if stage not in self._started:
                continue
            notes = state.get("notes", ())
            known = self._noted.get(stage, 0)
            for text in notes[known if known <= len(notes) else 0 :]:  # a board that was started again has forgotten
                self.note(f"{stage}: {text}")
            self._noted[stage] = len(notes)
            if says := state.get("says"):
                self._say(stage, says)
                continue
            if "done" not in state:
                continue
            rate, left = pace(self._first.setdefault(stage, state), state)
            detail = f"{state['done']:g}/{state['total']:g} {state['unit']}"
            if rate:
                detail += f", {rate:.3g} {state['unit']}/s, {_duration(left)} left"
            detail += "".join(f", {name} {value:.4g}" for name, value in state["facts"].items())
            begins = self._said.pop(stage, None) is not None
            if self._bars:
                self._bars.update(self._tasks[stage], total=state["total"], completed=state["done"], detail=detail)
            if begins or time.monotonic() - self._lines.get(stage, -math.inf) >= _LINE_SECONDS:
                self._line(stage, detail)

    def _say(self, stage: str, text: str) -> None:
        if self._said.get(stage) == text:
            return
        self._said[stage] = text
        self._first.pop(stage, None)  # what is counted from here on has a rate of its own
        if self._bars:
            self._bars.update(self._tasks[stage], detail=text)
        self._line(stage, text)

    def finish(self, stage: str, seconds: float, metrics: dict, summary: str | None = None) -> None:
        shown = summary or shown_metrics(metrics, 5)
        self._end(stage, f"done; {shown}", f"done in {_duration(seconds)}; {shown}", total=1, completed=1)

    def fail(self, stage: str, how: str = "failed") -> None:
        self._end(stage, f"[red]{how}", how)

    def _end(self, stage: str, detail: str, line: str, **bar: Any) -> None:
        if self._bars:
            self._bars.update(self._tasks[stage], detail=detail, **bar)
            self._bars.stop_task(self._tasks[stage])
        self._line(stage, line)
        self._started.pop(stage, None)

    def _line(self, stage: str, text: str) -> None:
        self._lines[stage] = time.monotonic()
        if not self._bars:
            line = f"{time.strftime('%H:%M:%S')} {self.label}{stage}: {redact(text)}"
            self.console.print(line, highlight=False, soft_wrap=True)
        self._log(f"{stage}: {text}")

    def _log(self, text: str) -> None:
        if self.log:
            self.log.write(text)


def pace(first: dict, state: dict) -> tuple[float, float]:
    """(what is done in a second since the state `first`, seconds left); (0, infinity) where that is not known yet."""
    seconds, done = state["time"] - first["time"], state["done"] - first["done"]
    if seconds <= 0 or done <= 0:
        return 0.0, math.inf
    return done / seconds, (state["total"] - state["done"]) * seconds / done


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds // 60 % 60} min"
