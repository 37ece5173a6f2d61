"""The input of a training step: a `Batch`, on any device.

Shapes: B rows, L places of a row, S visual segments of a row at most, T labels; M visual positions of one
representation, K of them in segments of one objective that are not clean context, N of those are targets; C channels of
a value, F of a feature.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniloom.models.unified.mask import BlockTables, QueryBlocks
from omniloom.models.unified.patchify import GridTables
from omniloom.models.unified.positions import Grid

IGNORE = -100  # in place of a label


@dataclass
class Here:
    """Those of a part's positions that one rank of several has (`models.unified.sequence`).

    rows    int64 (m,): which of the M positions
    places  int64 (m,): their flat places on this rank
    """

    rows: Tensor
    places: Tensor


@dataclass
class VisualPart:
    """The M positions of one representation, in the order of their places.

    index    int64 (M,): flat places b*L + l
    values   clean: float32 (M, C), or int64 (M,) codes
    segment  int64 (M,): b*S + s, of the s-th visual segment of row b
    tables   neighbours on the segments' grids, where the config has a unet for them
    here     where ranks share rows out, this rank's positions; else None
    cells    float32 (M, 2): row and column of each, where the config adds sinusoids of them; else None
    """

    index: Tensor
    values: Tensor
    segment: Tensor
    tables: GridTables | None = None
    here: Here | None = None
    cells: Tensor | None = None


@dataclass
class VisualTask:
    """The segments of one objective that are not clean context: targets, and context with noise. Their K positions
    lie segment by segment.

    rows      int64 (K,): which of the `VisualPart`'s positions they are
    targets   int64 (N,): which of the K are targets
    places    int64 (K,), numpy: their flat places, for what is drawn on the host
    segments  (b*S + s, grid, max_time, loss) each
    caps      float32 (B*S,): their max_time by segment, 0 of others; a copy made during a step would wait for the last
    weights   float32 (K,) of their losses; None where all are 1
    features  float32 (N, F) of the targets, 0 where a segment has none, and has_features, bool (N,): both None for
              codes and where `collate` has no feature_dim
    """

    rows: Tensor
    targets: Tensor
    places: np.ndarray
    segments: list[tuple[int, Grid, float, bool]]
    caps: Tensor
    weights: Tensor | None = None
    features: Tensor | None = None
    has_features: Tensor | None = None


@dataclass
class Batch:
    """B rows of L positions with up to S visual segments each (S is at least 1).

    ids             int64 (B, L); pad at visual positions and in padding
    labels          int64 (B, L): the token that the position has to predict, -100 where there is none
    label_index     int64 (T,): flat places (b*L + l) of the labels, which alone need vocabulary logits
    parts           by representation, its visual positions; of each that the config has, if only with none
    tasks           by objective, its segments; of each that the config has a representation for
    num_segments    S
    start, end      int64 (B, L): what each position sees (`models.unified.mask`)
    plan            what the attention backend needs of them, made ahead by the loader (`models.unified.attention`)
    positions       float32 (B, L, axes)
    document_index  int64 (B, L): number of the document in its row, -1 in padding
    tokens          counts, host integers: text and visual (useful places by modality), and padding
    targets         counts that losses are normalised by, host integers: text, each objective's targets, and where
                    `collate` has a feature_dim, alignment: those that have features
    label_weights   float32 (T,) of the labels' losses; None where all are 1
    drawn           by name what objectives draw of the rows' seeds, where it was drawn (`UnifiedObjective.draw_ahead`)
    unconditioned   the targets of a distilled objective, in their order, each behind <bos> alone
                    (`UnifiedObjective.beside`); None where nothing is distilled
    """

    ids: Tensor
    labels: Tensor
    label_index: Tensor
    parts: dict[str, VisualPart]
    tasks: dict[str, VisualTask]
    num_segments: int
    start: Tensor
    end: Tensor
    positions: Tensor
    document_index: Tensor
    tokens: dict[str, int]
    targets: dict[str, int]
    plan: QueryBlocks | BlockTables | None = None
    label_weights: Tensor | None = None
    drawn: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    unconditioned: Batch | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`; a plan made for CPUs does not go with it to another."""
        if isinstance(self.plan, QueryBlocks) and torch.device(device).type != "cpu":
            alone = self.unconditioned and self.unconditioned.to(device, non_blocking)
            return replace(self, plan=None, unconditioned=alone).to(device, non_blocking)
        return _changed(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory, from where a GPU takes it without the host waiting."""
        return _changed(self, Tensor.pin_memory)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with `change` made to each tensor, those in dataclasses, tuples and dictionaries too."""
    if isinstance(value, QueryBlocks):  # its loops are the host's
        return value
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: _changed(part, change) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_changed(part, change) for part in value)
    if isinstance(value, Batch | BlockTables | GridTables | VisualPart | VisualTask):
        return type(value)(**{f.name: _changed(getattr(value, f.name), change) for f in fields(value)})
    return value
