"""What tests of the packed model share: dense views of a `Batch`, a plain forward pass, and pictures to pack."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from omniloom.models.unified.batch import Batch
from omniloom.models.unified.model import UnifiedModel


def is_visual(batch: Batch) -> Tensor:
    """bool (B, L): visual positions."""
    found = torch.zeros(batch.ids.numel(), dtype=torch.bool)
    for part in batch.parts.values():
        found[part.index] = True
    return found.view(batch.ids.shape)


def is_target(batch: Batch) -> Tensor:
    """bool (B, L): visual positions that are targets."""
    found = torch.zeros(batch.ids.numel(), dtype=torch.bool)
    for task in batch.tasks.values():
        found[torch.from_numpy(task.places)[task.targets]] = True
    return found.view(batch.ids.shape)


def forward(
    model: UnifiedModel, batch: Batch, times: Tensor | float = 0.0, values: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Text logits, and predictions at every visual position; `times` (B, S) or one for all."""
    given = {name: part.values for name, part in batch.parts.items()} | dict(values or {})
    at = torch.zeros(len(batch.ids), batch.num_segments) + times
    return model(batch, given, dict.fromkeys(given, at), {name: part.index for name, part in batch.parts.items()})


def target_times(batch: Batch, time: float) -> Tensor:
    """(B, S): `time` for segments that are targets, 0 for the others."""
    times = torch.zeros(len(batch.ids) * batch.num_segments)
    for task in batch.tasks.values():
        for number, _, _, loss in task.segments:
            times[number] = time if loss else 0.0
    return times.view(len(batch.ids), -1)


def picture(grid: tuple[int, int, int], seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(int(np.prod(grid)), channels)).astype(np.float32)
