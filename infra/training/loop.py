"""The training loop: steps from a checkpoint to the end, with metrics, progress and checkpoints.

A plain function for every rank; it knows nothing of Ray. What a step does is the caller's `train_step`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from omniloom.infra.lease import Holder
from omniloom.infra.training import checkpoint
from omniloom.infra.training.config import WorkersConfig
from omniloom.infra.training.engine import Engine, reduce_mean


class TrainingDiverged(RuntimeError):
    """A loss or gradient that is not finite; the message names the step and the batch."""


@dataclass
class Loop:
    """`train_step(step) -> (logs, units)`: floats to log and how many units (images, tokens) this rank consumed.

    `position()` gives what the loader needs to go on from here; `describe(step)` names the batch for an error.
    `log(metrics, step, units)` and `progress` are used on rank 0 alone. `every` maps a name to (steps, function):
    what is to be called on every rank after so many steps, and after the last one; its time, and that of checkpoints,
    is not training's. `amounts` names what of the logs is, like units, added up over steps and ranks and logged as
    NAME_per_second.
    """

    steps: int
    unit: str
    workers: WorkersConfig
    engines: dict[str, Engine]
    train_step: Callable[[int], tuple[dict[str, float], float]]
    position: Callable[[], dict]
    describe: Callable[[int], str]
    state: str
    log: Callable[[dict, int, float], None]
    progress: Callable[..., None]
    every: dict[str, tuple[int, Callable[[int], None]]] = field(default_factory=dict)
    amounts: tuple[str, ...] = ()

    def logs_after(self, done: int) -> bool:
        """Whether a row is logged when so many steps are done."""
        # A checkpoint closes the window, so that a resumed run logs the same rows and counts every unit once.
        return done % self.workers.log_every == 0 or self._keeps(done)

    def _keeps(self, done: int) -> bool:
        return done % self.workers.checkpoint_every == 0 or done == self.steps

    def _save(self, done: int, units: float, last: dict[str, float], holder: Holder | None) -> None:
        if self._keeps(done):
            if holder:
                holder.require()
            checkpoint.save(
                self.state,
                done,
                self.engines,
                {**self.position(), "units": units, "last": last},
                self.workers.keep_checkpoints,
            )

    def run(self, start: int = 0, units: float = 0.0, last: dict[str, float] | None = None) -> dict[str, Any]:
        """Run steps `start`..`steps`; gives the seconds, the units of all ranks and the last logged metrics. `units`
        and `last` are those of the checkpoint's position that training goes on from."""
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        first = not dist.is_initialized() or dist.get_rank() == 0
        # A worker whose run is gone must not write into the next one's checkpoints; rank 0, which completes them, asks.
        holder = Holder(self.state) if first else None
        seen: dict[str, list[float]] = {}
        last = last or {}
        began = time.perf_counter()
        window_units = seconds = 0.0
        for step in range(start, self.steps):
            step_began = time.perf_counter()
            logs, step_units = self.train_step(step)
            seconds += time.perf_counter() - step_began
            for key, value in logs.items():
                if not math.isfinite(value):
                    raise TrainingDiverged(f"step {step}: {key} is {value}; batch: {self.describe(step)}")
                seen.setdefault(key, []).append(value)
            window_units += step_units
            done = step + 1
            if self.logs_after(done):
                # Keys may differ from step to step (an image step, a video step), never from rank to rank.
                means = {key: sum(values) / len(values) for key, values in seen.items()}
                sums = {self.unit: window_units, **{name: sum(seen[name]) for name in self.amounts}}
                means = {key: value for key, value in means.items() if key not in sums}
                last = reduce_mean(means | {f"_{name}": value for name, value in sums.items()})
                totals = {name: last.pop(f"_{name}") * ranks for name in sums}
                units += totals[self.unit]
                if first:
                    rates = {f"{name}_per_second": total / seconds for name, total in totals.items()}
                    self.log({**last, **rates}, done, units)
                    self.progress(done, self.steps, "steps", **{k: v for k, v in last.items() if k == "loss"})
                seen, window_units, seconds = {}, 0.0, 0.0
            elif first:
                self.progress(done, self.steps, "steps")
            if done < self.steps:
                for steps, function in self.every.values():
                    if done % steps == 0:
                        function(done)
            self._save(done, units, last, holder)
        # After the last checkpoint, so that what is made of the trained model is made again where it was lost.
        for _, function in self.every.values() if self.steps else ():
            function(self.steps)
        return {"seconds": time.perf_counter() - began, "units": units, **last}
