"""The curves of a training stage: one JSON object per logged step, also sent to the stage's MLflow run.

Kept in the work folder with each checkpoint, so that a resumed run has one curve without a doubled step.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from typing import Any

from omniloom.infra import storage
from omniloom.infra.figures import finite
from omniloom.infra.tracking.charts import TRAIN, charted


class History:
    def __init__(self, state: str, tracker: Any):
        self._uri, self._tracker = storage.join(state, "history.jsonl"), tracker
        self.rows: list[dict] = []

    def rewind(self, step: int) -> None:
        """Go on after `step`: what an earlier attempt logged beyond its last checkpoint is dropped."""
        if storage.exists(self._uri):
            self.rows = [json.loads(line) for line in storage.read_bytes(self._uri).decode().splitlines()]
        self.rows = [row for row in self.rows if row["step"] <= step]

    def add(self, metrics: dict[str, float], step: int, units: float | None = None) -> None:
        """Log a row; one of the same step and figures, as a validation that is repeated after a resume, replaces it."""
        first = bisect_left(self.rows, step, key=lambda row: row["step"])
        self.rows[first:] = [row for row in self.rows[first:] if row.keys() - {"step", "units"} != metrics.keys()]
        self.rows.append(finite({"step": step, **({"units": units} if units is not None else {}), **metrics}))
        shown = charted(metrics, TRAIN)
        self._tracker.log_metrics(shown, step=step, seen=int(units) if units is not None else None)

    def keep(self) -> None:
        """Write the rows down for a later attempt, which goes on from a checkpoint: so with each, not with each row."""
        self.save(self._uri)

    def save(self, uri: str) -> None:
        storage.write_bytes(uri, "".join(json.dumps(row) + "\n" for row in self.rows).encode())


def keep_picture(output: str, label: str, step: int, png: bytes) -> None:
    """Keep what a training showed at a step below the stage's output: the newest by its label, all by their steps."""
    storage.write_bytes(storage.join(output, "report", f"{label}.png"), png)
    storage.write_bytes(storage.join(output, "report", "steps", f"{label}-{step:09d}.png"), png)


def series(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """{name: [(step, value)]} of history rows; NaN where a figure was none."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "units"):
                found.setdefault(name, []).append((row["step"], math.nan if value is None else value))
    return found


def load(uri: str) -> list[dict]:
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
