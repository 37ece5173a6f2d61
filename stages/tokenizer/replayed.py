"""A rank of a tokenizer's training as `stages.replay` trains it again, and what each clip of a step gives by itself:
its loss and the norm of its gradient.

In: a training's job. Out: its parts; of a clip a dictionary with its place in the source. A clip passes alone under the
weights before the step's update, with the noise that it has in the step, and moves no codebook. Its loss is the
generator's, adversarial terms included. Where ranks have clips of different numbers, the ones with fewer measure one
again: terms that ranks balance together must be asked for on all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omniloom.infra.training.shards import gathered
from omniloom.models.tokenizer import draws
from omniloom.stages.data.clips import ClipBatches
from omniloom.stages.data.order import hash_seed
from omniloom.stages.replay import Parts
from omniloom.stages.tokenizer.job import Job
from omniloom.stages.tokenizer.trainer import TokenizerTrainer
from omniloom.stages.tokenizer.worker import assemble


def parts(job: Job) -> Parts:
    trainer, clips = assemble(job)
    return Parts(trainer, clips, lambda step, pixels: measure(trainer, clips, step, pixels))


def measure(trainer: TokenizerTrainer, clips: ClipBatches, step: int, pixels: Tensor) -> list[dict[str, Any]]:
    """Of every clip of the step, over all ranks, in its order. `pixels` are this rank's."""
    if trainer.generator.collective:
        return []
    places, total = trainer.places(pixels)
    origins, found = clips.origins(step), []
    for number in range(-(-total // trainer.ranks)):
        at = min(number, len(places) - 1)
        loss, norm = _loss_and_norm(trainer, step, places[at], pixels[at : at + 1])
        if number < len(places):
            found.append({**origins[places[at]], "task": trainer.kind(pixels), "loss": loss, "grad_norm": norm})
    return [clip for part in gathered(found) for clip in part]


def _loss_and_norm(trainer: TokenizerTrainer, step: int, place: int, pixels: Tensor) -> tuple[float, float]:
    engine = trainer.generator
    pixels, trained = pixels.to(engine.device), [p for p in engine.module.parameters() if p.requires_grad]
    with draws.by_example([hash_seed(trainer.config.seed, step, place)], pixels.device), engine.autocast():
        loss = trainer.loss_of(step, pixels)
    # Not `backward`, which would add to the gradient of the step and wake DeepSpeed's hooks.
    gradients = [g for g in torch.autograd.grad(loss, trained, allow_unused=True) if g is not None]
    norms = torch.stack([torch.linalg.vector_norm(gradient.double()) for gradient in gradients])
    return float(loss.detach()), float(torch.linalg.vector_norm(norms))
