"""The parts of documents: segments of text and pictures, in numpy. In: ids, or a picture's values and its grid. Out:
checked `Segment`s. Errors: ValueError naming the field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from omniloom.models.unified.positions import Grid
from omniloom.models.unified.representations import OBJECTIVES, REPRESENTATIONS, VisualObjective, objective_row

T = TypeVar("T")


def _of(segment: Segment, name: str, value: T | None) -> T:
    if value is None:
        raise ValueError(f"Segment.{name}: a {segment.kind} segment has none")
    return value


@dataclass
class Segment:
    """A run of text or one picture, in a document.

    kind       "text" or "visual"
    ids        text: integers (n,)
    latents, pixels, codes   visual, exactly one of them: floats (t*h*w, C) normalised per channel, floats
               (t*h*w, p*p*3) in [-1, 1], or integers (t*h*w,), in the order time, row, column
    grid       visual: (t, h, w)
    loss       text: its tokens are targets. visual: its positions are
    objective  visual: a name of `models.unified.representations.OBJECTIVES`, also where it is context, as it decides
               what the segment sees of itself; for latents and pixels it is their diffusion where none is named
    max_time   visual: the factor, in [0, 1], of the diffusion time that is drawn for it. A target has 1, clean context
               0; context with capped noise, and a target that is never noised in full, lie between. Of codes under
               masked_code it caps the share that is masked; next_code has no time
    weight     of its targets in the loss, not below 0
    features   visual: a frozen encoder's, floats (t*h*w, F) in the order of the values, which the hidden states of a
               target of a diffusion are aligned with (`models.unified.objectives.alignment`); None where there are none
    """

    kind: str
    ids: np.ndarray | None = None
    latents: np.ndarray | None = None
    grid: Grid | None = None
    loss: bool = True
    pixels: np.ndarray | None = None
    codes: np.ndarray | None = None
    objective: str | None = None
    max_time: float | None = None
    weight: float = 1.0
    features: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"Segment.weight: expected a number not below 0, got {self.weight!r}")
        if self.kind == "text":
            if self.ids is None or np.ndim(self.ids) != 1:
                raise ValueError("Segment.ids: a text segment needs a one-dimensional array of token ids")
            self.ids = np.asarray(self.ids, dtype=np.int64)
        elif self.kind == "visual":
            self._check_visual()
        else:
            raise ValueError(f"Segment.kind: expected text or visual, got {self.kind!r}")

    def _check_visual(self) -> None:
        if self.grid is None or len(self.grid) != 3 or min(self.grid) < 1:
            raise ValueError(f"Segment.grid: a visual segment needs (t, h, w), got {self.grid!r}")
        frames, rows, columns = self.grid
        self.grid = int(frames), int(rows), int(columns)
        self._check_objective()
        self._check_shape()
        self._check_max_time()

    def _check_objective(self) -> None:
        present = [name for name in REPRESENTATIONS if getattr(self, name) is not None]
        if len(present) != 1:
            names = ", ".join(REPRESENTATIONS)
            raise ValueError(
                f"Segment.latents: a visual segment needs one of {names}, got {', '.join(present) or 'none'}"
            )
        fitting = [name for name, row in OBJECTIVES.items() if row.representation.name == present[0]]
        if self.objective is None:
            self.objective = REPRESENTATIONS[present[0]].usual
        if self.objective not in fitting:
            raise ValueError(f"Segment.objective: {present[0]} need {' or '.join(fitting)}, got {self.objective!r}")

    def _check_shape(self) -> None:
        kind, count, shape = self.row.representation, math.prod(self.visual_grid), np.shape(self.values)
        if len(shape) != (1 if kind.discrete else 2) or shape[0] != count:
            expected = f"({count},)" if kind.discrete else f"({count}, C)"
            raise ValueError(f"Segment.{kind.name}: grid {self.grid} needs {expected}, got {shape}")

    def _check_max_time(self) -> None:
        if self.max_time is None:
            self.max_time = 1.0 if self.loss else 0.0
        if not 0 <= self.max_time <= 1 or (self.loss and not self.max_time):
            raise ValueError(f"Segment.max_time: expected a share up to 1, of a target above 0, got {self.max_time!r}")
        if self.row.causal and self.max_time != self.loss:
            raise ValueError(f"Segment.max_time: {self.objective} has no time, got {self.max_time!r}")

    @property
    def text_ids(self) -> np.ndarray:
        """`ids` of a text; ValueError of a picture."""
        return _of(self, "ids", self.ids)

    @property
    def visual_grid(self) -> Grid:
        """`grid` of a picture; ValueError of a text."""
        return _of(self, "grid", self.grid)

    @property
    def row(self) -> VisualObjective:
        """The row of a picture's objective; ValueError of a text."""
        return OBJECTIVES[_of(self, "objective", self.objective)]

    @property
    def time_cap(self) -> float:
        """`max_time` of a picture; ValueError of a text."""
        return _of(self, "max_time", self.max_time)

    @property
    def values(self) -> np.ndarray:
        """The latents, pixels or codes of a visual segment."""
        return getattr(self, self.row.representation.name)

    @property
    def length(self) -> int:
        """Places it takes in a row, <boi> and <eoi> included."""
        return len(self.text_ids) if self.kind == "text" else math.prod(self.visual_grid) + 2


Document = Sequence[Segment]


def visual_segment(
    objective: str, values: np.ndarray, grid: Grid, loss: bool = True, max_time: float | None = None
) -> Segment:
    """A visual segment whose values are what the objective is about."""
    name = objective_row(objective).representation.name
    own: dict[str, Any] = {name: values}
    return Segment("visual", grid=grid, loss=loss, objective=objective, max_time=max_time, **own)


def document_length(document: Document) -> int:
    """Places that a document takes in a row: what a packer counts."""
    return sum(segment.length for segment in document)
