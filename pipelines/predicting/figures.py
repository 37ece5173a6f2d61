"""What a stage takes, as figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from omniloom.infra.training.config import WorkersConfig
from omniloom.pipelines import fitting

# Bytes a second that a GPU's memory is copied to the host's at (PCIe 4 with 16 lanes), for which a training waits.
_COPIED = 20e9
_NUMBERS = 3  # a trained number is kept as weight and two moments


@dataclass(frozen=True)
class Takes:
    """None where it is not known. `basis` says in words what seconds and rate are from. A `unit` is a token, an image
    or another thing that the stage counts."""

    seconds: float | None = None
    unit: str = ""
    units_per_second: float | None = None
    checkpoint_bytes: int | None = None
    checkpoint_pause_seconds: float | None = None
    gpu_hours: float | None = None  # of the stage's body and its workers
    cpu_hours: float | None = None
    cost: float | None = None  # by the config's `prices`
    currency: str = ""
    basis: str = ""
    worker_memory_bytes: dict[str, int] | None = None  # at the moment that takes most, by what takes it
    fit: fitting.Fit | None = None  # a worker's, on the kind of GPU that it would have

    def to_dict(self) -> dict[str, Any]:
        found = {name: value for name, value in asdict(self).items() if value not in (None, "") and name != "fit"}
        return found | (self.fit.to_dict() if self.fit else {})


def hours(seconds: float, cpus: float, gpus: float) -> dict[str, Any]:
    return {f"{kind}_hours": n * seconds / 3600 if n else None for kind, n in (("cpu", cpus), ("gpu", gpus))}


def of_workers(
    seconds: float, rate: float, workers: WorkersConfig, unit: str, basis: str, fixed: dict[str, Any]
) -> Takes:
    spent = hours(seconds, workers.most * workers.cpus, workers.most * workers.gpus)
    return Takes(seconds, unit, rate, basis=basis, **spent, **fixed)


def checkpoint(parameters: int, ema: float, workers: WorkersConfig) -> dict[str, Any]:
    """Bytes of all workers' parts together, and how long a training on GPUs waits for the copy of one."""
    size = 4 * parameters * (_NUMBERS + bool(ema))
    pause = size / workers.most / _COPIED if workers.gpus else None
    return {"checkpoint_bytes": size, "checkpoint_pause_seconds": pause}
