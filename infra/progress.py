"""Progress: what a running stage has done, on its way from any worker to the driver that shows it; and the driver's
wish that it ends, on its way back.

Workers hold a picklable `Progress`; it writes to a `ProgressBoard`, a Ray actor that the driver reads twice a
second, or to a plain dictionary when the stage runs in the driver's own process.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omniloom.infra import worker_log
from omniloom.infra.waiting import answer

_BOARD_SECONDS = 10.0  # for an answer of the board


class ProgressBoard:
    """The latest state per stage: {"done", "total", "unit", "facts", "time"} or {"says", "time"}, or neither before the
    first; and all "notes", and the "validations" since the stage's body was started: [step, {name: value}]. "time" is
    when it was told, by a clock that nobody sets. Runs as a Ray actor or in-process.
    """

    def __init__(self):
        self._states: dict[str, dict] = {}
        self._notes: dict[str, list[str]] = {}
        self._validations: dict[str, list[tuple[int, dict]]] = {}
        self._to_stop: dict[str, str] = {}

    def update(self, stage: str, state: dict) -> None:
        self._states[stage] = {**state, "time": time.monotonic()}

    def note(self, stage: str, text: str) -> None:
        self._notes.setdefault(stage, []).append(text)

    def measured(self, stage: str, step: int, figures: dict) -> None:
        self._validations.setdefault(stage, []).append((step, figures))

    def ask_to_stop(self, stages: list[str], who: str = "the driver") -> None:
        """To the stages' workers: end, as soon as what is done is kept."""
        self._to_stop.update(dict.fromkeys(stages, who))

    def goes_on(self, stage: str) -> None:
        """From the driver: what the stage was asked is done, and its next attempt is to go on."""
        self._to_stop.pop(stage, None)

    def is_to_stop(self, stage: str) -> str | None:
        """Who asked; None where nobody did."""
        return self._to_stop.get(stage)

    def read(self) -> dict[str, dict]:
        stages = dict.fromkeys([*self._states, *self._notes, *self._validations])
        return {
            stage: {
                **self._states.get(stage, {}),
                "notes": self._notes.get(stage, []),
                "validations": self._validations.get(stage, []),
            }
            for stage in stages
        }


def start_board():
    """A board as a Ray actor beside the driver that reads it, started again where its process dies."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(ProgressBoard).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


@dataclass
class Progress:
    """Call it as `progress(done, total, "images", loss=0.1)`; of calls closer than `interval` seconds only the facts
    are kept, which stand beside what is done until they are told anew."""

    stage: str
    board: Any = None  # a ProgressBoard, a handle to one in another process, or None for silence
    interval: float = 0.5
    _last: float = field(default=-math.inf, repr=False)
    _most: float = field(default=0.0, repr=False)
    _facts: dict[str, float] = field(default_factory=dict, repr=False)  # those told last, each until it is told anew
    _hears: Callable[[], None] | None = field(default=None, repr=False)

    def __getstate__(self) -> dict:
        return {**vars(self), "_hears": None, "_last": -math.inf}  # of this process alone

    @contextlib.contextmanager
    def heard_by(self, hears: Callable[[], None]) -> Iterator[None]:
        """In the block `hears` is called where more is done than ever before."""
        self._hears = hears
        try:
            yield
        finally:
            self._hears = None

    def note(self, text: str) -> None:
        """Show a line to whoever runs the pipeline."""
        worker_log.write(text)
        if self.board is not None:
            self._call(self.board.note, text)

    def __call__(self, done: float, total: float, unit: str, **facts: float) -> None:
        if done > self._most and self._hears:
            self._hears()
        self._most = max(done, self._most)
        self._facts |= facts
        now = time.monotonic()
        if self.board is None or (now - self._last < self.interval and done < total):
            return
        self._last = now
        self._send({"done": done, "total": total, "unit": unit, "facts": self._facts})

    def measured(self, step: int, figures: Mapping[str, float]) -> None:
        """What a validation of a training measured after a step."""
        if self.board is not None:
            method = self.board.measured
            getattr(method, "remote", method)(self.stage, step, dict(figures))

    def ask_to_stop(self, who: str) -> None:
        """From the stage's body: its workers are to end, as soon as what is done is kept."""
        if self.board is not None:
            method = self.board.ask_to_stop
            getattr(method, "remote", method)([self.stage], who)

    def say(self, text: str) -> None:
        """What the stage is at where that cannot be counted, such as `starting 2 workers`."""
        worker_log.write(text)
        if self.board is not None:
            self._send({"says": text})

    def is_to_stop(self) -> str | None:
        """Who wants the stage to end; None where nobody does."""
        if self.board is None:
            return None
        if not hasattr(self.board.is_to_stop, "remote"):
            return self.board.is_to_stop(self.stage)
        return answer(self.board.is_to_stop.remote(self.stage), _BOARD_SECONDS)

    def _send(self, state: dict) -> None:
        self._call(self.board.update, state)

    def _call(self, method: Any, value: Any) -> None:
        getattr(method, "remote", method)(self.stage, value)
