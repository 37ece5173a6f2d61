"""Watch: a thread that notices when its process stops beating in its own rhythm, and what the threads are doing then.

`beat` ends a stretch of work, `enters` says what else the present one holds. Time counts as far as the thread saw it
pass: where the whole process was stopped (SIGSTOP, a suspended machine), a silence is not the work's.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from omniloom.infra.training.rhythm import Rhythm

_INTERVAL = 1.0  # seconds between looks
_OURS = "watch"
_PRODUCT = tuple(f"{Path(__file__).parents[2] / layer}{os.sep}" for layer in ("pipelines", "stages", "models", "infra"))


class Watch:
    """`with Watch(rhythm, on_hang) as watch:` calls `on_hang(seconds, limit)` once, from the watching thread, where a
    stretch lasts longer than the rhythm allows."""

    def __init__(self, rhythm: Rhythm, on_hang: Callable[[float, float], None], interval: float = _INTERVAL):
        self._rhythm, self._on_hang, self._interval = rhythm, on_hang, interval
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._kinds: set[str] = set()
        self._began, self._seen = time.monotonic(), 0.0

    def __enter__(self) -> Watch:
        threading.Thread(target=self._look, daemon=True, name=_OURS).start()
        return self

    def __exit__(self, *exception) -> None:
        self._stop.set()

    def enters(self, kind: str) -> None:
        """The present stretch holds this too, such as a validation."""
        with self._lock:
            self._kinds.add(kind)

    def beat(self) -> None:
        """The present stretch has ended, and the next begins."""
        now = time.monotonic()
        with self._lock:
            # What the process slept through is no part of the rhythm.
            self._rhythm.learn(self._kind(), min(now - self._began, self._seen + 2 * self._interval))
            self._kinds.clear()
            self._began, self._seen = now, 0.0

    def passed(self, seconds: float) -> tuple[float, float] | None:
        """Count seconds since the last look; (how long the stretch lasts, its limit) where that is too long. More than
        two intervals at once were slept through by this process, and count as one."""
        with self._lock:
            self._seen += seconds if seconds <= 2 * self._interval else self._interval
            limit = self._rhythm.limit(self._kind())
            return (self._seen, limit) if limit is not None and self._seen > limit else None

    def _kind(self) -> str:
        return "+".join(sorted(self._kinds))

    def _look(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self._interval):
            now = time.monotonic()
            if (overdue := self.passed(now - before)) is not None and not self._stop.is_set():
                self._on_hang(*overdue)
                return
            before = now


def stacks(first: int) -> tuple[str, str]:
    """(what each thread of this process is doing, innermost call last, the thread `first` before the others; where
    that one stands, in a few words). Without source lines: their disk may be what does not answer."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    parts: list[str] = []
    place = "gone"
    for ident in sorted(frames, key=lambda ident: (ident != first, ident)):
        if names.get(ident) == _OURS:
            continue
        calls = [
            (frame.f_code.co_filename, line, frame.f_code.co_qualname)
            for frame, line in traceback.walk_stack(frames[ident])
        ]
        if ident == first:
            place = _place(calls)
        lines = [f"  {file}:{line} {name}" for file, line, name in reversed(calls)]
        parts.append("\n".join([f"thread {names.get(ident, ident)}", *lines]))
    return "\n".join(parts) + "\n", place


def _place(calls: list[tuple[str, int, str]]) -> str:
    """The innermost call, and the innermost one of our own code."""
    found = [calls[0], *[call for call in calls if call[0].startswith(_PRODUCT)][:1]]
    return " in ".join(dict.fromkeys(f"{name} ({Path(file).name}:{line})" for file, line, name in found))
