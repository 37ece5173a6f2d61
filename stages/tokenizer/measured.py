"""How long a step of a tokenizer's training takes a worker on this machine: real steps at the stage's shape, of a new
model on noise. In: the stage's config, the model's. Out: seconds of a step and numbers that a checkpoint holds.

Steps differ: images or videos, each size, with and without the discriminator, with R1 or not. One of each kind that
there is gets timed, and counts as often as it comes. What workers send each other and what decodes clips is left out.
To be called in a process of its own, with the variables that ranks have.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from omniloom.infra.training.launch import single_process
from omniloom.models.tokenizer.build import AnyTokenizerConfig, patch_size_of
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.tokenizer.config import Config
from omniloom.stages.tokenizer.job import Job
from omniloom.stages.tokenizer.trainer import TokenizerTrainer
from omniloom.stages.tokenizer.worker import engines_of

_WARM, _TIMED = 1, 4
_LOOKED_AT = 2000  # steps, evenly over all


@dataclass(frozen=True)
class Kind:
    """What a step's time depends on; `judged` and `critic`: the discriminator has a say, and is trained."""

    clips: str
    size: int
    judged: bool
    critic: bool
    r1: bool


class _Quiet:
    """A tracker and a progress display that nobody follows."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


def kinds(config: Config) -> dict[Kind, tuple[int, float]]:
    """By kind of step one step that is of it, and the share of all steps that are."""
    found: dict[Kind, float] = defaultdict(float)
    first: dict[Kind, int] = {}
    for step in np.unique(np.linspace(0, config.steps - 1, _LOOKED_AT).astype(int)).tolist():
        for kind, weight in _kinds_of(config, step):
            found[kind] += weight
            first.setdefault(kind, step)
    return {kind: (first[kind], count / sum(found.values())) for kind, count in found.items()}


def _kinds_of(config: Config, step: int) -> list[tuple[Kind, float]]:
    """What the step may be, with the probability of each."""
    data, critic = config.data, config.discriminator
    trained = bool(critic) and config.loss.trains_discriminator(step)
    judged = bool(critic) and config.loss.adversarial_schedule(step) > 0
    r1 = trained and critic is not None and critic.takes_penalty(step)
    shares = {"image": data.image_ratio, "video": 1 - data.image_ratio} if len(data.kinds) > 1 else {data.kinds[0]: 1.0}
    return [
        (Kind(clips, size, judged, trained, r1), share / len(data.sizes))
        for clips, share in shares.items()
        for size in data.sizes
        if share
    ]


def step_seconds(config: Config, model: AnyTokenizerConfig) -> tuple[float, int]:
    """A worker's seconds of a step, on the average of all; and the numbers that are trained, the discriminator's
    too."""
    torch.set_num_threads(int(config.workers.cpus) or 1)
    torch.manual_seed(config.seed)
    with single_process(), tempfile.TemporaryDirectory() as folder:
        nothing = cast(Any, None)  # no records are read: the pixels are made up
        job = Job(config, model, nothing, None, folder, folder, _Quiet(), _Quiet())
        engines = engines_of(job, config.workers.most)
        trainer = TokenizerTrainer(job, engines, nothing, 0, config.workers.most)
        seconds = sum(share * _seconds_of(trainer, kind, step) for kind, (step, share) in kinds(config).items())
        trained = sum(p.numel() for e in engines.values() for p in e.module.parameters() if p.requires_grad)
    return seconds, trained


def _seconds_of(trainer: TokenizerTrainer, kind: Kind, step: int) -> float:
    """Seconds of such a step, the median of some."""
    pixels, found = _pixels(trainer, kind), []
    for _ in range(_WARM + _TIMED):
        began = time.perf_counter()
        trainer.train_step(step, pixels)
        if trainer.generator.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[_WARM:])


def _pixels(trainer: TokenizerTrainer, kind: Kind) -> Tensor:
    """The first worker's clips."""
    data, image = trainer.config.data, kind.clips == "image"
    height, width = Aspects(data.aspects, patch_size_of(trainer.job.model)).shape(0, kind.size)
    count = -(-(data.image_batch if image else data.video_batch) // trainer.ranks)
    return torch.rand(count, 3, *(() if image else (data.frames,)), height, width) - 0.5
