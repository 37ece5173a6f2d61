"""What a run shows: in a terminal one bar per stage with rate and time left, in a log one plain line now and then."""
from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from infra.secrets import redact
from pipelines.tables import shown_metrics

_LINE_SECONDS = 10.0


class Display:
    """Use as a context manager around a run. `update` takes a ProgressBoard's states."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, int] = {}
        self._started: dict[str, float] = {}
        self._first: dict[str, dict] = {}
        self._lines: dict[str, float] = {}
        self._noted: dict[str, int] = {}
        if self.console.is_terminal:
            self._bars = Progress(TextColumn("[bold]{task.description:<16}"), BarColumn(bar_width=30),
                                  TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[detail]}"),
                                  TimeElapsedColumn(), console=self.console)

    def __enter__(self) -> Display:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(self, *exception) -> None:
        if self._bars:
            self._bars.stop()

    def note(self, text: str) -> None:
        self.console.print(redact(text), style="dim", highlight=False)

    def start(self, stage: str, reason: str) -> None:
        self._started[stage] = time.time()
        if self._bars:
            self._tasks[stage] = self._bars.add_task(stage, total=None, detail=redact(reason))
        else:
            self._line(stage, f"started ({reason})")

    def update(self, states: dict[str, dict]) -> None:
        for stage, state in states.items():
            if stage not in self._started:
                continue
            for text in state["notes"][self._noted.get(stage, 0):]:
                self.note(f"{stage}: {text}")
            self._noted[stage] = len(state["notes"])
            first = self._first.setdefault(stage, state)
            seconds, done = state["time"] - first["time"], state["done"] - first["done"]
            rate = done / seconds if seconds > 0 and done > 0 else None
            detail = f"{state['done']:g}/{state['total']:g} {state['unit']}"
            if rate:
                left = (state["total"] - state["done"]) / rate
                detail += f", {rate:.3g} {state['unit']}/s, {_duration(left)} left"
            detail += "".join(f", {name} {value:.4g}" for name, value in state["facts"].items())
            if self._bars:
                self._bars.update(self._tasks[stage], total=state["total"], completed=state["done"], detail=detail)
            elif time.time() - self._lines.get(stage, 0) >= _LINE_SECONDS:
                self._line(stage, detail)

    def finish(self, stage: str, seconds: float, metrics: dict, summary: str | None = None) -> None:
        shown = summary or shown_metrics(metrics, 5)
        if self._bars:
            self._bars.update(self._tasks[stage], total=1, completed=1, detail=f"done; {shown}")
            self._bars.stop_task(self._tasks[stage])
        else:
            self._line(stage, f"done in {_duration(seconds)}; {shown}")
        self._started.pop(stage, None)

    def fail(self, stage: str) -> None:
        if self._bars:
            self._bars.update(self._tasks[stage], detail="[red]failed")
            self._bars.stop_task(self._tasks[stage])
        else:
            self._line(stage, "failed")
        self._started.pop(stage, None)

    def _line(self, stage: str, text: str) -> None:
        self._lines[stage] = time.time()
        self.console.print(f"{time.strftime('%H:%M:%S')} {stage}: {redact(text)}", highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds // 60 % 60} min"
