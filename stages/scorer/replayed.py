"""A rank of a scorer's training as `stages.replay` trains it again, and what each pair of a step gives by itself.

In: a training's job. Out: its parts; of a pair a dictionary with its place in the source. A pair has a loss only among
the others of its batch: theirs are the embeddings that they have before the step's update, and its own picture and
caption pass alone. Its loss is its share of the batch's: under the softmax the mean of its row's and its column's cross
entropy, whose mean over pairs is the step's loss, under the sigmoid its row's sum. Its gradient is that of this loss
through its own picture and caption.
"""

from __future__ import annotations

from typing import Any, cast

import torch

from omniloom.infra.training.engine import Engine
from omniloom.infra.training.rows import all_rows
from omniloom.infra.training.shards import gathered
from omniloom.models.scorer.objective import ScorerObjective
from omniloom.stages.replay import Parts
from omniloom.stages.scorer.job import Job
from omniloom.stages.scorer.pairs import PairBatches, Pairs
from omniloom.stages.scorer.trainer import ScorerTrainer
from omniloom.stages.scorer.worker import assemble


def parts(job: Job) -> Parts:
    trainer, loader = assemble(job)
    return Parts(trainer, loader, lambda step, batch: measure(trainer, loader, step, batch))


def measure(trainer: ScorerTrainer, loader: PairBatches, step: int, batch: list[Pairs]) -> list[dict[str, Any]]:
    """Of every pair of the step, over all folds and ranks, in its order. Empty under ZeRO-3 on several ranks, where no
    rank can run pairs by itself. Every rank must call it."""
    found: list[dict[str, Any]] = []
    for number, (name, engine) in enumerate(trainer.engines.items()):
        if engine.collective:
            return []
        mine = _of_fold(trainer, number, engine, batch[number])
        told = [figures for part in gathered(mine) for figures in part]
        task = name if len(batch) > 1 else "pair"
        origins = loader.origins(step, number)
        found += [{**origin, "task": task, **own} for origin, own in zip(origins, told, strict=True)]
    return found


def _of_fold(trainer: ScorerTrainer, fold: int, engine: Engine, pairs: Pairs) -> list[dict[str, float]]:
    """Of this rank's pairs."""
    encoder, module = trainer.encoders[fold], cast(ScorerObjective, engine.module)
    pixels, texts = encoder.normalised(pairs.pixels.to(engine.device)), encoder.ids(pairs.captions)
    with torch.no_grad(), engine.autocast():
        others = [all_rows(rows, pairs.counts) for rows in module.embedded(pixels, texts)]
    same_BB, first = pairs.same.to(engine.device), sum(pairs.counts[: trainer.rank])
    trained, found = [p for p in module.parameters() if p.requires_grad], []
    for place in range(len(texts)):
        with engine.autocast():
            own = module.embedded(pixels[place : place + 1], texts[place : place + 1])
        at = torch.tensor([first + place], device=engine.device)
        pictures, captions = (rows.index_copy(0, at, mine) for rows, mine in zip(others, own, strict=True))
        loss = module.losses(pictures, captions, same_BB)[first + place]
        # Not `backward`, which would add to the gradient of the step and wake DeepSpeed's hooks.
        gradients = [g for g in torch.autograd.grad(loss, trained, allow_unused=True) if g is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient.double()) for gradient in gradients])
        found.append({"loss": float(loss.detach()), "grad_norm": float(torch.linalg.vector_norm(norms))})
    return found
