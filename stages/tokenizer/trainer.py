"""A step, a validation and a logged row of a tokenizer's training, for `infra.training.loop`."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from torch import Tensor

from omniloom.infra import storage
from omniloom.infra.figures import finite
from omniloom.infra.training.engine import Engine
from omniloom.models.tokenizer import draws
from omniloom.models.tokenizer.base import Encoded
from omniloom.stages.data.clips import ClipBatches
from omniloom.stages.data.order import hash_seed
from omniloom.stages.reporting.history import History, keep_picture
from omniloom.stages.tokenizer import reconstruction
from omniloom.stages.tokenizer.job import Job

_OF_ALL_KINDS = ("loss", "lr", "grad_norm")  # figures that images and videos share; others have their kind's name


class TokenizerTrainer:
    """`engines`: the generator, which is the tokenizer with its losses, and where the config has one the
    discriminator. A step consumes clips of one kind."""

    unit = "images"
    amounts: tuple[str, ...] = ()

    def __init__(self, job: Job, engines: dict[str, Engine], held_out: ClipBatches, rank: int, ranks: int):
        self.job, self.config, self.engines, self.held_out = job, job.config, engines, held_out
        self.rank, self.ranks = rank, ranks
        self.generator, self.critic = engines["generator"], engines.get("discriminator")
        self.history = History(job.state, job.tracker)  # the first rank's is used

    def train_step(self, step: int, batch: Tensor) -> tuple[dict[str, float | Tensor], float]:
        pixels = batch.to(self.generator.device, non_blocking=True)
        # What a step draws (a KL bottleneck's noise) depends on the step and on the clip's place in it alone.
        mine, total = self.places(pixels)
        with draws.by_example([hash_seed(self.config.seed, step, place) for place in mine], pixels.device):
            return self._train_step(step, pixels, len(mine) * self.ranks / total)

    def places(self, pixels: Tensor) -> tuple[list[int], int]:
        """The places of this rank's clips among those of the step, and how many the step has."""
        data = self.config.data
        total = data.video_batch if pixels.ndim == 5 else data.image_batch
        return np.array_split(np.arange(total), self.ranks)[self.rank].tolist(), total

    def loss_of(self, step: int, pixels: Tensor) -> Tensor:
        """Of the generator on these clips in this step, with a graph; nothing moves by it."""
        judge, weight = self._judge(step)
        return self.generator.module(pixels, judge, weight, update_codebook=False)[0]

    def _judge(self, step: int) -> tuple[Any, float]:
        """The discriminator, None where it has no say in this step, and its weight."""
        weight = self.config.loss.adversarial_schedule(step) if self.critic else 0.0
        return self.critic.engine if self.critic and weight else None, weight

    def _train_step(self, step: int, pixels: Tensor, share: float) -> tuple[dict[str, float | Tensor], float]:
        """`share` is what a mean over this rank's clips weighs in the mean over ranks: 1 where they divide evenly."""
        judge, weight = self._judge(step)
        loss, logs, recon = self.generator(pixels, judge, weight)
        self.generator.backward(loss * share)
        logs = {name: value * share for name, value in logs.items()} | self.generator.step(step)
        if self.critic and self.config.loss.trains_discriminator(step):
            critic_loss, critic_logs = self.critic(pixels, recon.detach(), step)
            self.critic.backward(critic_loss * share)
            self.critic.step(step)
            logs |= {name: value * share for name, value in critic_logs.items()}
        return self.named(self.kind(pixels), logs), len(pixels)

    def named(self, kind: str, logs: dict[str, float | Tensor]) -> dict[str, float | Tensor]:
        """A step's figures on clips of a kind, under the names that they are logged by."""
        return {name if name in _OF_ALL_KINDS else f"{kind}_{name}": value for name, value in logs.items()}

    def reconstruct(self, module: Any, pixels: Tensor) -> tuple[Tensor, Encoded]:
        """What is validated: pixels as they come back, and their tokens."""
        return module.tokenizer(pixels)

    def kind(self, batch: Tensor) -> str:
        return "video" if batch.ndim == 5 else "image"

    def measure(self, step: int, loader: ClipBatches) -> list[dict[str, Any]]:
        return []  # no clip is left out of a step: going back leaves out the step (`stages.tokenizer.replayed`)

    def validate(self, step: int) -> None:
        with self.generator.evaluated() as module:
            clips = self.held_out.batches(self.config.validation_examples)
            reconstruct = functools.partial(self.reconstruct, module)
            metrics, picture = reconstruction.validate(module.tokenizer, reconstruct, clips, self.generator)
            if not metrics or self.rank:  # the validation split may hold none of these kinds
                return
            self.history.add(metrics, step)
            self.job.progress.measured(step, metrics)
            self.job.tracker.log_image(picture, "reconstruction", step)
            keep_picture(self.job.output, "reconstruction", step, picture)
            storage.write_json(storage.join(self.job.state, "validation.json"), finite(metrics))

    def log(self, metrics: dict[str, float], step: int, units: float) -> None:
        self.history.add(metrics, step, units)

    def keep(self) -> None:
        self.history.keep()

    def rewind(self, step: int) -> None:
        self.history.rewind(step)
