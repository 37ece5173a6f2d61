"""Progress: what a running stage has done, on its way from any worker to the driver that shows it.

Workers hold a picklable `Progress`; it writes to a `ProgressBoard`, a Ray actor that the driver reads twice a
second, or to a plain dictionary when the stage runs in the driver's own process.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


class ProgressBoard:
    """The latest state per stage: {"done", "total", "unit", "facts", "time", "notes"}, or {"says", "time", "notes"}.
    Runs as a Ray actor or in-process."""

    def __init__(self):
        self._states: dict[str, dict] = {}

    def update(self, stage: str, state: dict) -> None:
        self._states[stage] = state

    def read(self) -> dict[str, dict]:
        return dict(self._states)


def start_board():
    """A board as a Ray actor beside the driver that reads it, started again where its process dies."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(ProgressBoard).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


@dataclass
class Progress:
    """Call it as `progress(done, total, "images", loss=0.1)`; calls closer than `interval` seconds are dropped."""

    stage: str
    board: Any = None  # a ProgressBoard, a handle to one in another process, or None for silence
    interval: float = 0.5
    _last: float = field(default=0.0, repr=False)
    _notes: list[str] = field(default_factory=list, repr=False)

    def note(self, text: str) -> None:
        """Show a line to whoever runs the pipeline, with the next state that is shown."""
        self._notes.append(text)

    def __call__(self, done: float, total: float, unit: str, **facts: float) -> None:
        now = time.time()
        if self.board is None or (now - self._last < self.interval and done < total):
            return
        self._last = now
        self._send({"done": done, "total": total, "unit": unit, "facts": facts})

    def say(self, text: str) -> None:
        """What the stage is at where that cannot be counted, such as `starting 2 workers`."""
        if self.board is not None:
            self._send({"says": text})

    def _send(self, state: dict) -> None:
        state = {**state, "time": time.time(), "notes": list(self._notes)}
        update = self.board.update
        if hasattr(update, "remote"):
            update.remote(self.stage, state)
        else:
            update(self.stage, state)
