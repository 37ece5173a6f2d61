"""Whether a worker of a training fits a GPU, and what would make it fit. In: the stage's config, what it needs at any
settings, the GPU's name. Out: figures, and words. Torch is imported for tokenizers alone.

What would make it fit are settings that change no result, tried one after the other, each on top of those before that
spared something: fewer rows a pass, activations computed again, more of the state shared out, optimizer states in host
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from omniloom.infra import gpus
from omniloom.infra.nodes import gib
from omniloom.pipelines import sizing
from omniloom.pipelines.checks import with_upstream
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.trainings import Training, training_of
from omniloom.stages.tokenizer.config import Config as TokenizerConfig
from omniloom.stages.train.config import Config as TrainConfig
from omniloom.stages.train.memory import USABLE

Needed = Callable[[Any], int]  # bytes of a worker under a stage's config


@dataclass(frozen=True)
class Fit:
    """needed and memory in bytes; memory None where it is not known. `changes` in words, empty where none is needed."""

    needed: int
    gpu: str
    memory: int | None
    changes: str = ""

    @property
    def fits(self) -> bool | None:
        """None where the GPU's memory is not known."""
        return None if self.memory is None else self.needed <= self.memory

    def to_dict(self) -> dict[str, Any]:
        found = {"gpu": self.gpu, "gpu_memory_bytes": self.memory, "fits_gpu": self.fits, "to_fit": self.changes}
        return {name: value for name, value in found.items() if value not in (None, "")}

    def __str__(self) -> str:
        if self.memory is None:
            return f"needs {gib(self.needed)}; the memory of {self.gpu} is not known"
        says = f"needs {gib(self.needed)} of {gib(self.memory)} ({self.gpu})"
        if not self.fits:
            says += " and does not fit"
        elif self.changes:
            says += f", of which allocator and driver take about {1 - USABLE:.0%}"
        return f"{says}: {self.changes}" if self.changes else says


def fit(config: Any, needed: Needed, gpu: str, memory: int | None = None) -> Fit:
    """Of one worker on a GPU of Ray's name for it; `memory` where it is known better than by the name. A worker with a
    part of a GPU has that part of its memory."""
    memory = memory or gpus.known(gpu).memory
    share = min(1.0, config.workers.gpus)
    memory = None if memory is None else int(memory * share)
    now = needed(config)
    crowded = memory is not None and now > USABLE * memory
    return Fit(now, gpu, memory, changes(config, needed, memory) if memory and crowded else "")


def of_stage(config: PipelineConfig, name: str, gpu: str, memory: int | None = None) -> Fit | None:
    """Of a stage that trains; None where its sizes are not known. Of tokenizers torch is needed."""
    for stage, own, upstream in with_upstream(config):
        if stage.name != name:
            continue
        if training := training_of(own, upstream):
            return of_training(training, gpu, memory)
        if isinstance(own, TokenizerConfig) and (model := sizing.tokenizer_models(config).get(name)):
            return fit(own, lambda tried: sizing.tokenizer_size(tried, model)["memory_per_worker_bytes"], gpu, memory)
    return None


def of_training(training: Training, gpu: str, memory: int | None = None) -> Fit:
    """Of a worker of one of those."""
    whole = memory or gpus.known(gpu).memory

    def needed(config: Any) -> int:
        return sum(replace(training, config=config).on(whole).memory.values())

    return fit(training.config, needed, gpu, memory)


def changes(config: Any, needed: Needed, memory: int) -> str:
    """What to set so that a worker takes no more than what is usable of so much memory."""
    taken: list[tuple[str, Any]] = []
    least, limit = needed(config), int(USABLE * memory)
    for field, value in _settings(config):
        if (tried := _with(config, field, value)) is None or (size := needed(tried)) >= least:
            continue
        taken = [(f, v) for f, v in taken if f != field] + [(field, value)]
        config, least = tried, size
        if least <= limit:
            break
    said = " and ".join(f"{field} {str(value).lower()}" for field, value in taken)
    if least <= limit:
        return f"with {said} it needs {gib(least)}"
    known = f"even with {said} it needs {gib(least)}" if said else "no setting spares memory"
    return f"{known}; take more workers, a larger GPU or a smaller model"


def _settings(config: Any) -> Iterator[tuple[str, Any]]:
    workers, engine = config.workers, config.engine
    if isinstance(config, TrainConfig):
        groups = workers.most // engine.sequence_parallel
        most = config.batch_rows // groups
        yield from (("workers.accumulate", n) for n in range(workers.accumulate + 1, most + 1) if most % n == 0)
    yield "engine.activation_checkpointing", True
    yield from (("engine.zero_stage", n) for n in range(engine.zero_stage + 1, 4) if workers.most > 1)
    yield "engine.offload", True


def _with(config: Any, field: str, value: Any) -> Any:
    """The config with another setting; None where that does not go with the others."""
    part, name = field.split(".")
    settings = getattr(config, part)
    try:
        changed = type(settings).model_validate(settings.model_dump() | {name: value})
        return type(config).model_validate({**_fields(config), part: changed})
    except ValueError:
        return None


def _fields(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in type(config).model_fields}
