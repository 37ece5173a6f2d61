"""Views line by line: plain lines, JSON objects, and errors alone. Counts come now and then."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console

from omniloom.infra.figures import finite
from omniloom.infra.secrets import redact
from omniloom.pipelines.views.events import Count, Event, View, of_all, told

_LINE_SECONDS = 10.0  # between two plain lines, or JSON objects, of one count


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
        print_last(event)

    def _print(self, text: str) -> None:
        self.console.print(redact(text), markup=False, highlight=False, soft_wrap=True)


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


def print_last(event: Event) -> None:
    print(redact(event.message), file=sys.stdout if event.event == "result" else sys.stderr, flush=True)


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


class _Logged(logging.Handler):
    """What this process's libraries log or warn of, as events."""

    def __init__(self, lines: JsonLines):
        super().__init__(logging.WARNING)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self.lines.tell(Event("log", record.getMessage(), level=level, fields={"logger": record.name}))
