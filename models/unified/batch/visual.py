"""The visual segments of a batch, laid out by representation and by objective. In: segments with their places. Out:
`VisualPart`s and `VisualTask`s.

Shapes: as in `models.unified.batch.tensors`; P segments of one representation, I of them of one objective.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omniloom.models.unified.batch.segment import Segment
from omniloom.models.unified.batch.tensors import VisualPart, VisualTask
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.patchify import grid_tables
from omniloom.models.unified.positions import cells
from omniloom.models.unified.representations import OBJECTIVES, REPRESENTATIONS, VisualObjective


@dataclass
class PlacedSegment:
    """A visual segment in its row, the `number`-th there; `first` is the place of its first position."""

    row: int
    number: int
    first: int
    segment: Segment

    @property
    def count(self) -> int:
        """Positions, <boi> and <eoi> apart."""
        return math.prod(self.segment.visual_grid)

    @property
    def places(self) -> slice:
        return slice(self.first, self.first + self.count)

    @property
    def objective(self) -> VisualObjective:
        return self.segment.row


class VisualLayout:
    """The visual segments of one batch of B rows of L places, with S segments of a row at most."""

    def __init__(
        self, segments: Sequence[PlacedSegment], shape: tuple[int, int], config: UnifiedConfig, feature_dim: int | None
    ):
        self.segments, self.config, self.feature_dim = segments, config, feature_dim
        self.rows, self.length = shape
        self.num_segments = 1 + max((placed.number for placed in segments), default=0)

    def parts_and_tasks(self) -> tuple[dict[str, VisualPart], dict[str, VisualTask]]:
        """The parts by representation, of each that the config has, and the tasks by objective."""
        parts: dict[str, VisualPart] = {}
        tasks: dict[str, VisualTask] = {}
        for name in self.config.representations:
            own = [placed for placed in self.segments if placed.objective.representation.name == name]
            parts[name] = self._part(name, own)
            for objective, row in OBJECTIVES.items():
                if row.representation.name == name:
                    tasks[objective] = self._task(objective, own, parts[name])
        return parts, tasks

    def _number(self, placed: PlacedSegment) -> int:
        """b*S + s"""
        return placed.row * self.num_segments + placed.number

    def _part(self, name: str, own: list[PlacedSegment]) -> VisualPart:
        """The positions of the segments of one representation."""
        size, discrete = getattr(self.config, REPRESENTATIONS[name].size), REPRESENTATIONS[name].discrete
        places = [np.arange(p.places.start, p.places.stop) + p.row * self.length for p in own]
        index_M = np.concatenate([np.empty(0, np.int64), *places])
        M = len(index_M)
        values = np.empty(M if discrete else (M, size), np.int64 if discrete else np.float32)
        for p, first, stop in _bounds(own):
            values[first:stop] = p.segment.values
        numbers_P = np.array([self._number(p) for p in own], np.int64)
        segment_M = np.repeat(numbers_P, [p.count for p in own])
        unet = self.config.patchifier(name) == "unet"
        tables = grid_tables([p.segment.visual_grid for p in own]) if unet else None
        part = VisualPart(torch.from_numpy(index_M), torch.from_numpy(values), torch.from_numpy(segment_M), tables)
        if self.config.one_place:
            of_each = [np.empty((0, 2), np.float32), *(cells(p.segment.visual_grid) for p in own)]
            part.cells = torch.from_numpy(np.concatenate(of_each))
        return part

    def _task(self, objective: str, own: list[PlacedSegment], part: VisualPart) -> VisualTask:
        """The segments of one objective among its representation's `own`."""
        bounds = [
            (p, first, stop)
            for p, first, stop in _bounds(own)
            if p.segment.objective == objective and p.segment.time_cap > 0
        ]
        segments = [(self._number(p), p.segment) for p, *_ in bounds]
        sizes_I = [p.count for p, *_ in bounds]
        rows_K = np.concatenate([np.empty(0, np.int64), *(np.arange(first, stop) for _, first, stop in bounds)])
        is_target_K = np.repeat([segment.loss for _, segment in segments], sizes_I)
        caps = torch.zeros(self.rows * self.num_segments)
        for number, segment in segments:
            caps[number] = segment.time_cap
        task = VisualTask(
            torch.from_numpy(rows_K),
            torch.from_numpy(np.flatnonzero(is_target_K)),
            part.index.numpy()[rows_K],
            [(number, segment.visual_grid, segment.time_cap, segment.loss) for number, segment in segments],
            caps,
            weights_or_none(np.repeat([segment.weight for _, segment in segments], sizes_I)),
        )
        if self.feature_dim and OBJECTIVES[objective].is_diffusion:
            targets = [segment for _, segment in segments if segment.loss]
            task.features, task.has_features = _features(targets, self.feature_dim)
        return task


def _bounds(own: Sequence[PlacedSegment]) -> list[tuple[PlacedSegment, int, int]]:
    """(segment, first, stop) each: its positions among those of all of `own`."""
    stops = np.cumsum([0, *(p.count for p in own)]).tolist()
    return list(zip(own, stops, stops[1:]))


def weights_or_none(values: np.ndarray) -> Tensor | None:
    """float32; None where all are 1."""
    return None if (values == 1).all() else torch.from_numpy(values.astype(np.float32))


def _features(targets: list[Segment], feature_dim: int) -> tuple[Tensor, Tensor]:
    """Features (N, F) of the targets' positions, segment by segment, 0 where there are none, and which have some, bool
    (N,)."""
    sizes = [math.prod(segment.visual_grid) for segment in targets]
    has_N = np.repeat(np.array([segment.features is not None for segment in targets], bool), sizes)
    features_NF = np.zeros((len(has_N), feature_dim), np.float32)
    present = [segment.features for segment in targets if segment.features is not None]
    if present:
        features_NF[has_N] = np.concatenate(present)
    return torch.from_numpy(features_NF), torch.from_numpy(has_N)
