"""How what a run tells is shown: bars in a terminal, plain lines where there is none, JSON for machines, or nothing.

In: events, and counts between them. Out: text on one stream, which holds nothing else.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from omniloom.infra.figures import finite
from omniloom.infra.secrets import redact

_WIDE = 110  # columns from which there is room for a long bar, a stage's own clock, and seconds
_NAME = 20  # columns of the longest stage's name that is shown whole
_LINE_SECONDS = 10.0  # between two plain lines, or JSON objects, of one count
_ALL = "in all"  # the row below the stages'
_ENDS = ("done", "failed")
_STYLES = {"error": "red", "warning": "yellow"}


@dataclass(frozen=True)
class Event:
    """Something that happened once. `message` says it in words, `fields` to a machine: literals."""

    event: str
    message: str
    stage: str | None = None
    level: str = "info"
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Count:
    """How far a stage is; `rate` is 0 and `left`, in seconds, infinity where they are not known yet."""

    done: float
    total: float
    unit: str
    rate: float
    left: float
    facts: dict[str, float]

    def text(self, width: int | None = None) -> str:
        """`132/150 steps, 3.22 steps/s, loss 0.432, 6 s left`; in `width` columns what matters least is left out."""
        for text in self._texts():
            if width is None or len(text) <= width:
                return text
        return text

    def _texts(self) -> list[str]:
        """From all there is to say to the least."""
        done = f"{_number(self.done)}/{_number(self.total)}"
        left = f"{clock(self.left)} left" if self.rate else ""
        brief = f"{about(self.left)} left" if self.rate else ""
        rate, bare = (f"{_rate(self.rate)} {self.unit}/s", f"{_rate(self.rate)}/s") if self.rate else ("", "")
        facts = [f"{name} {value:.4g}" for name, value in self.facts.items()]
        full = [(f"{done} {self.unit}", rate, *facts[:n], left) for n in range(len(facts), 0, -1)]
        short = [
            (f"{done} {self.unit}", bare, *facts[:1], left),
            (f"{done} {self.unit}", bare, *facts[:1], brief),
            (done, bare, *facts[:1], brief),
            (done, *facts[:1], brief),
            (done, brief),
            (done,),
        ]
        return [", ".join(part for part in parts if part) for parts in (*full, *short)]

    def fields(self) -> dict[str, Any]:
        known = {"rate": self.rate, "seconds_left": round(self.left, 1)} if self.rate else {}
        return {"done": self.done, "total": self.total, "unit": self.unit, **known, **self.facts}


class View(Protocol):
    """Use as a context manager around a run, and outside it for what comes before and after."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *exception: Any) -> None: ...

    def tell(self, event: Event) -> None: ...

    def count(self, stage: str, count: Count, begins: bool) -> None:
        """Where a stage is; called about twice a second. `begins`: the first count after other words."""
        ...

    def overall(self, done: int, stages: int, left: float | None, ended: bool) -> None:
        """How many stages are done, and the seconds that the rest takes, where that is known; called as often as
        counts. `ended`: a stage has just ended."""
        ...

    def drop(self, stage: str) -> None:
        """Nothing more will be told of the stage."""
        ...

    def last(self, event: Event) -> None:
        """A last word: a `result` goes to standard output, where there is no machine that reads."""
        ...


class _Sparing:
    """Lets one of many counts through now and then."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def lets(self, stage: str, begins: bool) -> bool:
        if not begins and time.monotonic() - self._last.get(stage, -math.inf) < _LINE_SECONDS:
            return False
        self.shown(stage)
        return True

    def shown(self, stage: str | None) -> None:
        if stage:
            self._last[stage] = time.monotonic()


class Lines:
    """One plain line for each event, and for counts now and then."""

    def __init__(self, console: Console):
        self.console = console
        self._sparing = _Sparing()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def tell(self, event: Event) -> None:
        self._sparing.shown(event.stage)
        if event.event == "note":
            self._print(told(event))
        else:
            self._print(f"{time.strftime('%H:%M:%S')} {told(event)}")

    def count(self, stage: str, count: Count, begins: bool) -> None:
        if self._sparing.lets(stage, begins):
            self._print(f"{time.strftime('%H:%M:%S')} {stage}: {count.text()}")

    def overall(self, done: int, stages: int, left: float | None, ended: bool) -> None:
        if ended and left is not None and done < stages:
            self._print(f"{time.strftime('%H:%M:%S')} {of_all(done, stages, left)}")

    def drop(self, stage: str) -> None:
        pass

    def last(self, event: Event) -> None:
        _print_last(event)

    def _print(self, text: str) -> None:
        self.console.print(redact(text), markup=False, highlight=False, soft_wrap=True)


class Bars:
    """A row per stage, which is redrawn, and one for all below them. What does not fit the width is left out by worth,
    so that no row is ever longer than the terminal is wide."""

    def __init__(self, console: Console):
        self.console = console
        wide = console.width >= _WIDE
        whole = Column(no_wrap=True, overflow="ellipsis", min_width=15, max_width=_NAME)
        self._rows = _Rows(
            TextColumn("{task.description}", markup=False, style="bold", table_column=whole),
            BarColumn(30 if wide else 10),
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(no_wrap=True, min_width=4)),
            *([TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7))] if wide else []),
            _Detail(table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            console=console,
            expand=True,
        )
        self._tasks: dict[str, Any] = {}  # rich's TaskID

    def __enter__(self) -> Bars:
        self._rows.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._rows.stop()

    def tell(self, event: Event) -> None:
        text = redact(event.message)
        if event.event == "start":
            self._tasks[str(event.stage)] = self._rows.add_task(str(event.stage), total=None, detail=Text(text))
        elif event.event not in ("says", *_ENDS):
            style = _STYLES.get(event.level, "dim")
            text = redact(told(event))
            whole = max(map(len, text.split()), default=0) > self.console.width  # a path that stays one word to copy
            self.console.print(text, style=style, markup=False, highlight=False, soft_wrap=whole)
        else:
            task = self._tasks[str(event.stage)]
            full: dict[str, Any] = {"total": 1, "completed": 1} if event.event == "done" else {}
            self._rows.update(task, detail=Text(text, _STYLES.get(event.level, "")), **full)
            if event.event in _ENDS:
                self._rows.stop_task(task)

    def count(self, stage: str, count: Count, begins: bool) -> None:
        self._rows.update(self._tasks[stage], total=count.total, completed=count.done, detail=count)

    def overall(self, done: int, stages: int, left: float | None, ended: bool) -> None:
        self._rows.overall(done, stages, Text(of_all(done, stages, left)))

    def drop(self, stage: str) -> None:
        self._rows.remove_task(self._tasks.pop(stage))

    def last(self, event: Event) -> None:
        _print_last(event)


class _Rows(Progress):
    """The row of all stages is the last one, whenever the others came."""

    _all: Any = None

    def overall(self, done: int, stages: int, detail: Text) -> None:
        if self._all is None:
            self._all = self.add_task(_ALL, total=stages, detail=detail)
        self.update(self._all, total=stages, completed=done, detail=detail)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(sorted(self.tasks, key=lambda task: task.id == self._all))


class _Detail(ProgressColumn):
    """The last column: text, or a count, which is told its room when it is drawn."""

    max_refresh = None

    def render(self, task: Task) -> Any:
        detail = task.fields["detail"]
        return _Fitted(detail) if isinstance(detail, Count) else detail


@dataclass(frozen=True)
class _Fitted:
    count: Count

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(self.count.text(options.max_width), no_wrap=True, overflow="ellipsis")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, options.max_width)


class JsonLines:
    """One JSON object a line: time (ISO 8601, UTC), level, stage (null for the whole run), event, message, fields."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self._sparing = _Sparing()
        self._logged = _Logged(self)

    def __enter__(self) -> JsonLines:
        logging.captureWarnings(True)
        logging.getLogger().addHandler(self._logged)
        return self

    def __exit__(self, *exception: Any) -> None:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(self._logged)

    def tell(self, event: Event) -> None:
        self._sparing.shown(event.stage)
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": event.level,
            "stage": event.stage,
            "event": event.event,
            "message": event.message,
            "fields": event.fields,
        }
        self.stream.write(json.dumps(finite(redact(line)), ensure_ascii=True, default=str) + "\n")
        self.stream.flush()

    def count(self, stage: str, count: Count, begins: bool) -> None:
        if self._sparing.lets(stage, begins):
            self.tell(Event("progress", count.text(), stage, fields=count.fields()))

    def overall(self, done: int, stages: int, left: float | None, ended: bool) -> None:
        if ended:
            fields = {"done": done, "stages": stages} | ({} if left is None else {"seconds_left": round(left, 1)})
            self.tell(Event("overall", of_all(done, stages, left), fields=fields))

    def drop(self, stage: str) -> None:
        pass

    def last(self, event: Event) -> None:
        self.tell(event)


class _Logged(logging.Handler):
    """What this process's libraries log or warn of, as events."""

    def __init__(self, lines: JsonLines):
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self.lines.tell(Event("log", record.getMessage(), level=level, fields={"logger": record.name}))


class Errors:
    """For `--quiet`: nothing but errors and last words, as the view that it stands before shows them."""

    def __init__(self, behind: View):
        self.behind = behind

    def __enter__(self) -> Errors:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def tell(self, event: Event) -> None:
        if event.level == "error":
            self.behind.tell(event)

    def count(self, stage: str, count: Count, begins: bool) -> None:
        pass

    def overall(self, done: int, stages: int, left: float | None, ended: bool) -> None:
        pass

    def drop(self, stage: str) -> None:
        pass

    def last(self, event: Event) -> None:
        self.behind.last(event)


def chosen(quiet: bool = False, log_json: bool = False) -> View:
    """JSON goes to standard output; bars and lines to standard error, where a pipe does not take them along. Whether
    that is a terminal nothing in the environment says better than itself."""
    terminal = sys.stderr.isatty()
    console = Console(stderr=True, force_terminal=terminal)
    if log_json:
        view: View = JsonLines(sys.stdout)
    elif terminal and not quiet and not console.is_dumb_terminal:
        return Bars(console)
    else:
        view = Lines(console)
    return Errors(view) if quiet else view


def _print_last(event: Event) -> None:
    print(redact(event.message), file=sys.stdout if event.event == "result" else sys.stderr, flush=True)


def told(event: Event) -> str:
    """In a line of plain text."""
    return f"{event.stage}: {event.message}" if event.stage else event.message


def of_all(done: int, stages: int, left: float | None) -> str:
    """`2 of 8 stages, about 12 min left`."""
    return f"{done} of {stages} stages" + (f", about {about(left)} left" if left else "")


def about(seconds: float) -> str:
    """`40 s`, `2 min`, `5.2 h`, `4.1 d`: as well as a prediction knows."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} d"


def _number(value: float) -> str:
    """A count, whole where it is: no exponent however large."""
    return str(int(value)) if value == int(value) else f"{value:g}"


def _rate(value: float) -> str:
    """Three digits, without an exponent where the number is large."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def clock(seconds: float) -> str:
    """`40 s`, `3 min 05 s`, `5 h 12 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds // 60 % 60} min"
