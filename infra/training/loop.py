"""The training loop: from the newest checkpoint to the last step, with metrics, progress, validations and checkpoints.

It runs on every rank and knows nothing of Ray. What a step does is the stage's `Trainer`; what it does it on comes from
the stage's `Loader`.
"""

from __future__ import annotations

import contextlib
import math
import resource
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from omniloom.infra import owner, worker_log
from omniloom.infra.progress import Progress
from omniloom.infra.training import checkpoint, hangs, stopping
from omniloom.infra.training.agreement import Agreement
from omniloom.infra.training.config import EngineConfig, WorkersConfig
from omniloom.infra.training.divergence import first_difference
from omniloom.infra.training.engine import Engine, reduce_mean
from omniloom.infra.training.guard import GoBack, Guard, TrainingDiverged
from omniloom.infra.training.readings import Reading
from omniloom.infra.training.rhythm import Rhythm
from omniloom.infra.training.saving import Saver
from omniloom.infra.training.shards import gathered
from omniloom.infra.training.watch import Watch


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
        """Names the contents of the batch of the step that was taken last or before that, for an error message."""
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

    def train_step(self, step: int, batch: Any) -> tuple[Mapping[str, float | Tensor], float]:
        """Train one step on what the loader gave: what to log, floats or scalars on the device, which nothing here
        waits for, and how many units this rank consumed. The names may differ from step to step (an image step, a video
        step), never from rank to rank."""
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
        """Validate after this step. Called on every rank; its time is not training's."""
        ...

    def log(self, metrics: dict[str, float], step: int, units: float) -> None:
        """A row of the curves; `units` are those of all ranks since step 0. Called on rank 0 alone."""
        ...

    def keep(self) -> None:
        """Write the curves down, as a checkpoint follows that a later attempt may go on from. On rank 0 alone."""
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
    _waiting: list[Reading] = field(default_factory=list, init=False, repr=False)
    _done: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.guard = Guard(self.numerics, self.trainer.engines, self.state, self.progress.note)

    def run(self) -> dict[str, Any]:
        """Go on from the newest intact checkpoint, if any, to the last step; gives the seconds of this run, the units
        of all ranks since step 0 and the last logged metrics. The loader is closed.

        Stopped where the training was asked to end: a checkpoint of the steps that are done is written. A step that
        hangs ends the process (`hangs.end_rank`).
        """
        try:
            while True:
                with contextlib.suppress(GoBack), self._watch() as watch, self._saver() as saver:
                    return self._train(watch, saver, *self._resume())
        finally:
            self.loader.close()

    def _watch(self) -> Watch:
        processes, thread = gathered(owner.this_process()), threading.get_ident()
        rank = dist.get_rank() if dist.is_initialized() else 0

        def on_hang(seconds: float, limit: float) -> None:
            hangs.end_rank(self.state, self._done, rank, processes, thread, seconds, limit)

        return Watch(Rhythm(self.workers.hang_seconds), on_hang)

    def _resume(self) -> tuple[int, float, dict[str, float], _Window]:
        """The step to go on with; the units and the last logged metrics of those before it, and what of them is not
        logged yet."""
        start, position, window = 0, {}, _Window(self.trainer)
        self._waiting.clear()
        if found := checkpoint.latest(self.state, self.progress.note):
            checkpoint.load(found, self.trainer.engines)
            start, position = found["step"], found["position"]
            window.put(position.get("window", []))
        sought = self.guard.resume(position)
        if found:
            self.loader.seek(sought)
        if _first():
            self.trainer.rewind(start)
        if start == 0 and self.validate_first:
            self.trainer.validate(0)
        return start, position.get("units", 0.0), position.get("last", {}), window

    def _train(
        self, watch: Watch, saver: Saver, start: int, units: float, last: dict[str, float], window: _Window
    ) -> dict[str, Any]:
        agreement, before = Agreement(), units
        began = time.perf_counter()
        if start == 0 and self.guard.goes_back:
            saver.start(0, self.loader.position)
        for step in range(start, self.steps):
            self._done = step
            self._step(step, window)
            if step == start:
                saver.prepare()
            if self.guard.why:
                watch.enters("bad step")
                saver.finish()
                self.guard.act(step, self.loader.describe(step), lambda at: self.trainer.measure(at, self.loader))
            done = step + 1
            logs, keeps = self.workers.logs(done, self.steps), self.workers.keeps(done, self.steps)
            if (logs or keeps) and (differing := first_difference(self.trainer.engines)):
                saver.finish()
                self.guard.act_on_divergence(step, differing)
            if logs and window.values:
                worker_log.write(f"step {done}/{self.steps}: {window.own()}")
                last, rates, new = window.close()
                last |= self.guard.figures
                units += new
                if _first():
                    self.trainer.log({**last, **rates}, done, units)
                    self.progress(done, self.steps, "steps", **_losses(last))
            elif _first():
                self.progress(done, self.steps, "steps")
            if done < self.steps and done % self.validate_every == 0:
                watch.enters("validation")
                self.trainer.validate(done)
            stop = agreement.after_step() and done < self.steps
            if stop or keeps:
                watch.enters("checkpoint")
                self._read(window)
                if _first():
                    self.trainer.keep()
                position = {**self.loader.position, **self.guard.position, "units": units, "last": last}
                saver.start(done, position | window.all_ranks())
            if stop:
                agreement.close()
                self._stop(saver, done)
            watch.beat()
        agreement.close()
        watch.enters("end")
        # After the last checkpoint, so that what is made of the trained model is made again where it was lost.
        if self.steps:
            self.trainer.validate(self.steps)
        if error := saver.finish():
            self.progress.note(f"the last checkpoint was not saved: {error}")
        seconds = time.perf_counter() - began
        rate = (units - before) / seconds
        return {"seconds": seconds, "units": units, "units_per_second": rate, **_where(), **peak_memory(), **last}

    def _step(self, step: int, window: _Window) -> None:
        """Figures on a GPU are read while the next step runs there, or where a row or a checkpoint asks for them."""
        began = time.perf_counter()
        batch = self.loader.at(step)
        if self.guard.bad.active:
            self.guard.begin(self.trainer.kind(batch))
            if self.guard.bad.leaves_out(step):
                self._read(window)
                return
        logs, units = self.trainer.train_step(step, batch)
        reading = Reading(step, logs)
        self._read(window)
        if self.guard.why:
            return
        self._waiting.append(reading)
        if not reading.late or self.workers.logs(step + 1, self.steps):
            self._read(window)
        window.took(units, time.perf_counter() - began)

    def _read(self, window: _Window) -> None:
        while self._waiting:
            window.add(self._finite(self._waiting.pop(0)))

    def _finite(self, reading: Reading) -> dict[str, float]:
        for name, value in (values := reading.values()).items():
            if not math.isfinite(value):
                batch = self.loader.describe(reading.step)
                raise TrainingDiverged(f"step {reading.step}: {name} is {value}; batch: {batch}")
        return values

    def _stop(self, saver: Saver, done: int) -> NoReturn:
        if error := saver.finish():
            raise error
        why = f" ({reason})" if (reason := stopping.asked()) else ""  # one rank's, in general
        raise stopping.Stopped(f"stopped after step {done} of {self.steps}{why}, with a checkpoint of it")

    def _saver(self) -> Saver:
        keep, keep_every = self.workers.keep_checkpoints, self.workers.keep_every
        return Saver(self.state, self.trainer.engines, keep, keep_every, self.progress.note)


class _Window:
    """Logs of this rank's steps since the last logged row."""

    def __init__(self, trainer: Trainer):
        self.unit, self.amounts = trainer.unit, trainer.amounts
        self._clear()

    def _clear(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.units = self.seconds = 0.0

    def add(self, logs: dict[str, float]) -> None:
        for name, value in logs.items():
            self.values.setdefault(name, []).append(value)

    def took(self, units: float, seconds: float) -> None:
        self.units += units
        self.seconds += seconds

    def own(self) -> str:
        """Of this rank alone, in words: means of its logs, and its pace."""
        means = ((name, sum(values) / len(values)) for name, values in self.values.items() if name not in self.amounts)
        figures = [f"{name} {value:.4g}" for name, value in means]
        return ", ".join([*figures, f"{self.units / max(self.seconds, 1e-9):.3g} {self.unit}/s"])

    def all_ranks(self) -> dict[str, Any]:
        """What a checkpoint keeps of a row that is not logged yet, of every rank, as JSON; empty where it was logged.
        Every rank must call it."""
        if not self.values:
            return {}
        return {"window": gathered({"values": self.values, "units": self.units, "seconds": self.seconds})}

    def put(self, kept: list[dict[str, Any]]) -> None:
        """Go on with what a checkpoint kept: this rank's own, or its share where ranks became more or fewer."""
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if kept and len(kept) != ranks:
            kept = [_shared(kept, ranks)] * ranks
        if kept:
            self.values, self.units, self.seconds = (kept[rank][name] for name in ("values", "units", "seconds"))

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


def _shared(kept: list[dict[str, Any]], ranks: int) -> dict[str, Any]:
    """What each of `ranks` ranks takes over of what others had: their means, and of amounts an equal share."""
    names = kept[0]["values"]
    means = {name: [sum(v) / len(kept) for v in zip(*(rank["values"][name] for rank in kept))] for name in names}
    return {
        "values": means,
        "units": sum(rank["units"] for rank in kept) / ranks,
        "seconds": sum(rank["seconds"] for rank in kept) / len(kept),
    }


def peak_memory() -> dict[str, float]:
    """The most that this rank ever had: of its GPU what tensors took, on a CPU what the whole process did."""
    cuda = torch.cuda.is_available()
    taken = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {"peak_memory_mebibytes": taken / (1 << 20)}


def _where() -> dict[str, int]:
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return {"workers": ranks, "gpus": ranks if torch.cuda.is_available() else 0}


def _first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _losses(figures: dict[str, float]) -> dict[str, float]:
    """The loss, and what it is the sum of."""
    parts = {name: value for name, value in figures.items() if name.endswith("_loss")}
    return {name: figures[name] for name in ("loss",) if name in figures} | parts
