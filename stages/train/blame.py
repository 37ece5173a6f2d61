"""What each document of a training step gives by itself: its loss and the norm of its gradient.

In: the rows of the step as the loader packed them, and an engine whose weights are those before the step's update. Out:
a dictionary a document, with its place in the source. A document stays in its row, where its noise and its positions
are those of the step, and the weight of all others is 0. One whose figures are not finite there is taken out and
measured alone, since a neighbour may be the reason. It costs a forward and a backward pass of a row a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omniloom.infra.training.engine import Engine
from omniloom.infra.training.shards import gathered
from omniloom.models.unified.batch import Batch, Document

if TYPE_CHECKING:
    from omniloom.stages.train.rows import PackedRow, RowLoader


def measure(engine: Engine, loader: RowLoader, step: int) -> list[dict[str, Any]]:
    """Of every document of the step that the loader took last, over all ranks, in the order of rows. Empty under ZeRO-3
    on several ranks, where no rank can run its rows by itself. Every rank must call it."""
    if engine.collective:
        return []
    mine = [found for row in loader.taken(step) for found in _of_row(engine, loader, row)]
    group = engine.module.sequence
    return [found for part in gathered([] if group and group.rank else mine) for found in part]


def _of_row(engine: Engine, loader: RowLoader, row: PackedRow) -> list[dict[str, Any]]:
    found = []
    for number, placed in enumerate(row.documents):
        alone = loader.collate([[loader.segments(placed, row.seed)]])
        loss, norm = _loss_and_norm(engine, loader.collate([_muted(loader, row, number)]), row.seed, alone.targets)
        if not (loss.isfinite() and norm.isfinite()):
            loss, norm = _loss_and_norm(engine, alone, row.seed, alone.targets)
        found.append(
            {
                **loader.tokens.origin(placed.index),
                "row": row.number,
                "task": placed.view,
                **({} if placed.view == "text" else {"objective": placed.objective}),
                "tokens": placed.length,
                "targets": sum(alone.targets.values()),
                "loss": float(loss),
                "grad_norm": float(norm),
            }
        )
    return found


def _muted(loader: RowLoader, row: PackedRow, kept: int) -> Sequence[Document]:
    """The row's documents, of which one alone has a weight."""
    documents = [loader.segments(placed, row.seed) for placed in row.documents]
    for number, segments in enumerate(documents):
        for segment in segments if number != kept else ():
            segment.weight, segment.features = 0.0, None
    return documents


def _loss_and_norm(engine: Engine, batch: Batch, seed: int, targets: dict[str, int]) -> tuple[Tensor, Tensor]:
    """The mean loss over the targets, and the norm of its gradient."""
    module = engine.module
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    loss, _ = module(batch.to(engine.device), [seed], targets)
    # Not `backward`, which would add to the gradient of the step and wake DeepSpeed's hooks.
    gradients = [g.detach() for g in torch.autograd.grad(loss, trained, allow_unused=True) if g is not None]
    loss = loss.detach()
    if module.sequence:  # each rank has a share of both
        module.sequence.add_up([loss, *gradients])
    return loss, torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.double()) for g in gradients]))
