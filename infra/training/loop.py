"""The training loop: from the newest checkpoint to the last step, with metrics, progress, validations and checkpoints.

It runs on every rank and knows nothing of Ray. What a step does is the stage's `Trainer`; what it does it on comes from
the stage's `Loader`.
"""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch.distributed as dist

from omniloom.infra.progress import Progress
from omniloom.infra.training import checkpoint
from omniloom.infra.training.config import EngineConfig, WorkersConfig
from omniloom.infra.training.divergence import first_difference
from omniloom.infra.training.engine import Engine, reduce_mean
from omniloom.infra.training.guard import GoBack, Guard, TrainingDiverged
from omniloom.infra.training.saving import Saver


class Loader(Protocol):
    """This rank's batches. What a step is given depends on the seed and the position alone."""

    @property
    def position(self) -> dict[str, Any]:
        """Where the step after the last one that was taken starts: what a checkpoint keeps for `seek`, as JSON."""
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Go on from a position that a checkpoint kept; it may hold other keys too. "left_out" are ids of documents
        that must be in no batch from then on, as far as `Trainer.measure` gave any."""
        ...

    def at(self, step: int) -> Any:
        """The batch of a step; steps come in rising order."""
        ...

    def describe(self, step: int) -> str:
        """What the batch of a step that was taken is made of, for an error."""
        ...

    def close(self) -> None:
        """Ends what loads in the background."""
        ...


class Trainer(Protocol):
    """What a stage trains: `engines` by name, which checkpoints hold. `unit` is what a step consumes (images, tokens);
    `amounts` names what of a step's logs is, like units, added up over steps and ranks and logged as
    NAME_per_second."""

    unit: str
    amounts: tuple[str, ...]
    engines: dict[str, Engine]

    def train_step(self, step: int, batch: Any) -> tuple[dict[str, float], float]:
        """Train one step on what the loader gave: floats to log, and how many units this rank consumed. The names may
        differ from step to step (an image step, a video step), never from rank to rank."""
        ...

    def kind(self, batch: Any) -> str:
        """What the batch is, as far as losses of different kinds are not to be compared; one word, or none."""
        ...

    def measure(self, step: int, loader: Any) -> list[dict[str, Any]]:
        """Of the documents of the step that the loader gave last, of all ranks, what each gives by itself under the
        weights as they are: "id", "source", "path", "task", "loss", "grad_norm" and more, as JSON. Empty where a step
        is not made of documents that could be left out. Called on every rank."""
        ...

    def validate(self, step: int) -> None:
        """What follows a validation's step. Called on every rank; its time is not training's."""
        ...

    def log(self, metrics: dict[str, float], step: int, units: float) -> None:
        """A row of the curves; `units` are those of all ranks since step 0. Called on rank 0 alone."""
        ...

    def rewind(self, step: int) -> None:
        """Forget rows of the curves after `step`, where training goes on. Called on rank 0 alone."""
        ...


@dataclass
class Loop:
    """`state` is the URI of the stage's state folder, which holds the checkpoints. Validations follow every
    `validate_every` steps and the last one, and with `validate_first` precede step 0. `numerics` says what follows a
    bad step; after `run`, `guard.bad` says which there were."""

    steps: int
    workers: WorkersConfig
    trainer: Trainer
    loader: Loader
    state: str
    progress: Progress
    validate_every: int
    validate_first: bool = False
    numerics: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        self.guard = Guard(self.numerics, self.trainer.engines, self.state, self.progress.note)

    def run(self) -> dict[str, Any]:
        """Go on from the newest intact checkpoint, if any, to the last step; gives the seconds of this run, the units
        of all ranks since step 0 and the last logged metrics. The loader is closed."""
        try:
            while True:
                with contextlib.suppress(GoBack), self._saver() as saver:
                    return self._train(saver, *self._resume())
        finally:
            self.loader.close()

    def _resume(self) -> tuple[int, float, dict[str, float]]:
        """The step to go on with, and the units and the last logged metrics of those before it."""
        start, position = 0, {}
        if found := checkpoint.latest(self.state, self.progress.note):
            checkpoint.load(found, self.trainer.engines)
            start, position = found["step"], found["position"]
        sought = self.guard.resume(position)
        if found:
            self.loader.seek(sought)
        if _first():
            self.trainer.rewind(start)
        if start == 0 and self.validate_first:
            self.trainer.validate(0)
        return start, position.get("units", 0.0), position.get("last", {})

    def _train(self, saver: Saver, start: int, units: float, last: dict[str, float]) -> dict[str, Any]:
        window = _Window(self.trainer)
        began = time.perf_counter()
        if start == 0 and self.guard.goes_back:
            saver.start(0, self.loader.position)
        for step in range(start, self.steps):
            self._step(step, window, saver)
            done = step + 1
            logs, keeps = self.workers.logs(done, self.steps), self.workers.keeps(done, self.steps)
            if (logs or keeps) and (differing := first_difference(self.trainer.engines)):
                saver.finish()
                self.guard.act_on_divergence(step, differing)
            if logs and window.values:
                last, rates, new = window.close()
                last |= self.guard.figures
                units += new
                if _first():
                    self.trainer.log({**last, **rates}, done, units)
                    self.progress(done, self.steps, "steps", **{k: v for k, v in last.items() if k == "loss"})
            elif _first():
                self.progress(done, self.steps, "steps")
            if done < self.steps and done % self.validate_every == 0:
                self.trainer.validate(done)
            if keeps:
                position = {**self.loader.position, **self.guard.position, "units": units, "last": last}
                saver.start(done, position)
        # After the last checkpoint, so that what is made of the trained model is made again where it was lost.
        if self.steps:
            self.trainer.validate(self.steps)
        if error := saver.finish():
            self.progress.note(f"the last checkpoint was not saved: {error}")
        return {"seconds": time.perf_counter() - began, "units": units, **last}

    def _step(self, step: int, window: _Window, saver: Saver) -> None:
        began = time.perf_counter()
        batch = self.loader.at(step)
        if self.guard.bad.active:
            if self.guard.bad.leaves_out(step):
                return
            self.guard.begin(self.trainer.kind(batch))
        logs, units = self.trainer.train_step(step, batch)
        seconds = time.perf_counter() - began
        if self.guard.why:
            saver.finish()
            self.guard.act(step, self.loader.describe(step), lambda: self.trainer.measure(step, self.loader))
            return
        for name, value in logs.items():
            if not math.isfinite(value):
                raise TrainingDiverged(f"step {step}: {name} is {value}; batch: {self.loader.describe(step)}")
        window.add(logs, units, seconds)

    def _saver(self) -> Saver:
        keep, keep_every = self.workers.keep_checkpoints, self.workers.keep_every
        return Saver(self.state, self.trainer.engines, keep, keep_every, self.progress.note)


class _Window:
    """What the steps since the last logged row gave."""

    def __init__(self, trainer: Trainer):
        self.unit, self.amounts = trainer.unit, trainer.amounts
        self._clear()

    def _clear(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.units = self.seconds = 0.0

    def add(self, logs: dict[str, float], units: float, seconds: float) -> None:
        for name, value in logs.items():
            self.values.setdefault(name, []).append(value)
        self.units += units
        self.seconds += seconds

    def close(self) -> tuple[dict[str, float], dict[str, float], float]:
        """Means over steps and ranks, amounts by the second, and the units of all ranks; begins anew. Every rank must
        call it."""
        sums = {self.unit: self.units, **{name: sum(self.values[name]) for name in self.amounts}}
        means = {name: sum(values) / len(values) for name, values in self.values.items() if name not in sums}
        means = reduce_mean(means | {f"_{name}": value for name, value in sums.items()})
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        totals = {name: means.pop(f"_{name}") * ranks for name in sums}
        rates = {f"{name}_per_second": total / self.seconds for name, total in totals.items()}
        self._clear()
        return means, rates, totals[self.unit]


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0
