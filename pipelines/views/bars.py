"""A terminal's view: a row per stage, and one for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from omniloom.infra.secrets import redact
from omniloom.pipelines.views.events import Count, Event, of_all, told
from omniloom.pipelines.views.lines import print_last

_WIDE = 110  # columns from which there is room for a long bar, a stage's own clock, and seconds
_NAME = 20  # columns of the longest stage's name that is shown whole
_ALL = "in all"  # the row below the stages'
_ENDS = ("done", "failed")
_STYLES = {"error": "red", "warning": "yellow"}


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
        print_last(event)


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
