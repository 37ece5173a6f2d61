"""From documents to tensors. In: rows of documents, each a list of `Segment`s (numpy), as the packer placed
them. Out: a `Batch` with everything that a training step reads, noise and times apart.

In the token stream a visual segment is <boi>, its t*h*w positions, <eoi>; <bov> opens it where t > 1.
`collate` adds these three; <bos> and <eos> are the documents' own (`models.unified.layouts` writes the usual
documents).

Which position is asked for which token:
- a text token with `loss` is asked of the position before it, the document's first excepted;
- <boi> or <bov> of a visual segment with `loss` is asked of the text before it, where that has `loss` as well;
- the first text token after a segment is asked of its <eoi>;
- nothing is asked of <boi> and of visual positions in text: the segment's length is the sampler's business.
What the visual positions themselves are asked for is their objective's (`models.unified.objectives.objective`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.mask import BlockTables, QueryBlocks, block_tables, intervals, query_blocks
from omniloom.models.unified.patchify import GridTables, grid_tables
from omniloom.models.unified.positions import Grid, place
from omniloom.models.unified.representations import OBJECTIVES, REPRESENTATIONS, VisualObjective, objective_row

IGNORE = -100
T = TypeVar("T")


def _of(segment: Segment, name: str, value: T | None) -> T:
    if value is None:
        raise ValueError(f"Segment.{name}: a {segment.kind} segment has none")
    return value


@dataclass
class Segment:
    """A run of text or one picture, of a document.

    kind       "text" or "visual"
    ids        text: integers (n,)
    latents, pixels, codes   visual, exactly one of them: floats (t*h*w, C) normalised per channel, floats
               (t*h*w, p*p*3) in [-1, 1], or integers (t*h*w,), in the order time, row, column
    grid       visual: (t, h, w)
    loss       text: its tokens are targets. visual: its positions are
    objective  visual: a name of `models.unified.representations.OBJECTIVES`, also where it is context, as it decides
               what the segment sees of itself; for latents and pixels it is their diffusion
    max_time   visual: the most of the path that its own time may be, as a share; the time that is drawn is scaled by
               it. A target has 1, clean context 0; context with capped noise, and a target that is never noised
               in full, lie between. Of codes under masked_code it caps the share that is masked; next_code has no time
    weight     of its targets in the loss, not below 0
    features   visual: of a frozen encoder, floats (t*h*w, F) in the order of the values, which the hidden states of a
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
        given = [name for name in REPRESENTATIONS if getattr(self, name) is not None]
        if len(given) != 1:
            names, found = ", ".join(REPRESENTATIONS), ", ".join(given) or "none"
            raise ValueError(f"Segment.latents: a visual segment needs one of {names}, got {found}")
        usual = [name for name, row in OBJECTIVES.items() if row.representation.name == given[0]]
        if self.objective is None and len(usual) == 1:
            self.objective = usual[0]
        if self.objective not in usual:
            raise ValueError(f"Segment.objective: {given[0]} need {' or '.join(usual)}, got {self.objective!r}")
        row = OBJECTIVES[self.objective].representation
        count, shape = int(np.prod(self.grid)), np.shape(self.values)
        if len(shape) != (1 if row.discrete else 2) or shape[0] != count:
            expected = f"({count},)" if row.discrete else f"({count}, C)"
            raise ValueError(f"Segment.{row.name}: grid {self.grid} needs {expected}, got {shape}")
        if self.max_time is None:
            self.max_time = 1.0 if self.loss else 0.0
        if not 0 <= self.max_time <= 1 or (self.loss and not self.max_time):
            raise ValueError(f"Segment.max_time: expected a share up to 1, of a target above 0, got {self.max_time!r}")
        if OBJECTIVES[self.objective].causal and self.max_time != self.loss:
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
        """Of a visual segment: its latents, pixels or codes."""
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


def _moved(value: Any, device: torch.device | str, non_blocking: bool) -> Any:
    """The same with its tensors on `device`, dataclasses, tuples and dictionaries looked through."""
    if isinstance(value, QueryBlocks):  # its loops are the host's
        return value
    if isinstance(value, Tensor | GridTables):
        return value.to(device, non_blocking=non_blocking)
    if isinstance(value, dict):
        return {name: _moved(part, device, non_blocking) for name, part in value.items()}
    if isinstance(value, BlockTables):
        return BlockTables(
            **{
                f.name: tuple(_moved(part, device, non_blocking) for part in getattr(value, f.name))
                for f in fields(value)
            }
        )
    if isinstance(value, VisualPart | VisualTask):
        return type(value)(**{f.name: _moved(getattr(value, f.name), device, non_blocking) for f in fields(value)})
    return value


@dataclass
class VisualPart:
    """The M positions of one representation, in the order of their places.

    index    int64 (M,): flat places b*L + l
    values   clean: float32 (M, C), or int64 (M,) codes
    segment  int64 (M,): b*S + s, of the s-th visual segment of row b
    tables   neighbours on the segments' grids, where the config has a unet for them
    """

    index: Tensor
    values: Tensor
    segment: Tensor
    tables: GridTables | None = None


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
              codes and where `collate` was not asked for them
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
    labels          int64 (B, L): the token that the position has to predict, -100 where nothing is asked
    label_index     int64 (M,): flat places (b*L + l) of the labels, which alone need vocabulary logits
    parts           the visual positions by representation, of each that the config has, if only with none
    tasks           what is asked of them by objective, of each that the config has a representation for
    num_segments    S
    start, end      int64 (B, L): what each position sees (`models.unified.mask`)
    plan            what the attention backend needs of them, made ahead by the loader (`models.unified.attention`)
    positions       float32 (B, L, axes)
    document_index  int64 (B, L): number of the document in its row, -1 in padding
    tokens          counts, host integers: text and visual (useful places by modality), and padding
    targets         counts that losses are normalised by, host integers: text, each objective's positions, and where
                    features were asked for, alignment: those that have some
    label_weights   float32 (M,) of the labels' losses; None where all are 1
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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`; a plan made for CPUs does not go with it to another."""
        if isinstance(self.plan, QueryBlocks) and torch.device(device).type != "cpu":
            return replace(self, plan=None).to(device, non_blocking)
        return Batch(**{f.name: _moved(getattr(self, f.name), device, non_blocking) for f in fields(self)})


@dataclass
class _Placed:
    """A visual segment in its row; `first` is the place of its first position."""

    row: int
    number: int
    first: int
    segment: Segment

    @property
    def places(self) -> slice:
        return slice(self.first, self.first + math.prod(self.segment.visual_grid))

    @property
    def objective(self) -> VisualObjective:
        return self.segment.row


def collate(
    rows: Sequence[Sequence[Document]],
    length: int,
    config: UnifiedConfig,
    device: str | None = "cpu",
    feature_dim: int | None = None,
) -> Batch:
    """Lay out packed rows: rows[b] holds the documents of row b, in order, from position 0.

    length is L; device: the one that it is for, whose attention is planned here, None plans none; feature_dim: F of the
    features that are to be aligned with, None where none are. ValueError naming row and document where a row does not
    fit, a segment's values or features are not of the size that is expected, or an id is outside the vocabulary.
    Deterministic: a function of its arguments.
    """
    B, L, special = len(rows), length, config.specials
    ids = np.full((B, L), special.pad, np.int64)
    labels = np.full((B, L), IGNORE, np.int64)
    weights = np.ones((B, L), np.float32)
    document_index = np.full((B, L), -1, np.int64)
    start, end = np.empty((B, L), np.int64), np.empty((B, L), np.int64)
    # Padding sits at the origin: any finite place does, as nothing but itself sees it.
    coordinates = np.zeros((B, L, config.axes), np.float32)
    visual: list[_Placed] = []
    spans: list[tuple[int, int, int]] = []

    for b, documents in enumerate(rows):
        at, number, document_spans, full_spans = 0, 0, [], []
        for d, document in enumerate(documents):
            begin, last, asked, where = at, -1, True, f"row {b}, document {d}"
            if begin + document_length(document) > L:
                raise ValueError(f"{where}: needs {document_length(document)} places, {L - begin} of {L} are left")
            for segment in document:
                if segment.kind == "text":
                    text = segment.text_ids
                    n = len(text)
                    ids[b, at : at + n] = text
                    if segment.loss and n:
                        span = slice(max(at - 1, begin), at + n - 1)
                        labels[b, span], weights[b, span] = text[1 if at == begin else 0 :], segment.weight
                    coordinates[b, at : at + n], last = place(config.rope_scheme, ("text", n), last, config.axes)
                    at, asked = at + n, segment.loss
                    continue
                _check_values(segment, config, where)
                if feature_dim and segment.features is not None:
                    _check_features(segment, segment.features, feature_dim, where)
                opening = special.bov if segment.visual_grid[0] > 1 else special.boi
                if segment.loss and asked and at > begin:
                    labels[b, at - 1], weights[b, at - 1] = opening, segment.weight
                placed = _Placed(b, number, at + 1, segment)
                inside, closing = placed.places, placed.places.stop
                ids[b, at], ids[b, closing] = opening, special.eoi
                for piece, span in (
                    (("text", 1), slice(at, at + 1)),
                    (("visual", segment.visual_grid), inside),
                    (("text", 1), slice(closing, closing + 1)),
                ):
                    coordinates[b, span], last = place(config.rope_scheme, piece, last, config.axes)
                visual.append(placed)
                if not placed.objective.causal:
                    full_spans.append((inside.start, inside.stop))
                at, number, asked = closing + 1, number + 1, True
            document_index[b, begin:at] = d
            document_spans.append((begin, at))
        start[b], end[b] = intervals(L, document_spans, full_spans)
        spans += [(b, *span) for span in document_spans if span[0] < span[1]]

    if ids.size and (ids.min() < 0 or ids.max() >= config.vocab_size):
        b = int(np.argmax((ids < 0).any(1) | (ids >= config.vocab_size).any(1)))
        raise ValueError(f"row {b}: token ids outside 0..{config.vocab_size - 1}")
    num_segments = 1 + max((placed.number for placed in visual), default=0)
    parts, tasks = _lay_out(visual, (B, L), num_segments, config, feature_dim)
    label_index = np.flatnonzero(labels != IGNORE)
    targets = {"text": len(label_index), **{name: len(task.targets) for name, task in tasks.items()}}
    if feature_dim:
        found = (task.has_features for task in tasks.values() if task.has_features is not None)
        targets["alignment"] = sum(int(has.sum()) for has in found)
    useful = int((document_index >= 0).sum())
    num_visual = sum(len(part.index) for part in parts.values())
    plan = None
    if device is not None:
        plan = query_blocks(start, end, spans) if torch.device(device).type == "cpu" else block_tables(start, end)
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(labels),
        torch.from_numpy(label_index),
        parts,
        tasks,
        num_segments,
        torch.from_numpy(start),
        torch.from_numpy(end),
        torch.from_numpy(coordinates),
        torch.from_numpy(document_index),
        tokens={"text": useful - num_visual, "visual": num_visual, "padding": B * L - useful},
        targets=targets,
        plan=plan,
        label_weights=_weights(weights.flat[label_index]),
    )


def _weights(values: np.ndarray) -> Tensor | None:
    return None if (values == 1).all() else torch.from_numpy(values.astype(np.float32))


def _check_values(segment: Segment, config: UnifiedConfig, where: str) -> None:
    representation, values = segment.row.representation, segment.values
    size = getattr(config, representation.size)
    if size is None:
        raise ValueError(f"{where}: holds {representation.name}, and the model has no {representation.size}")
    if not representation.discrete and values.shape[1] != size:
        channels = values.shape[1]
        raise ValueError(f"{where}: {representation.name} have {channels} channels, {representation.size} is {size}")
    if representation.discrete and not (0 <= values.min() and values.max() < size):
        raise ValueError(f"{where}: codes outside 0..{size - 1}, {representation.size} is {size}")


def _check_features(segment: Segment, features: np.ndarray, feature_dim: int, where: str) -> None:
    wanted, shape = (math.prod(segment.visual_grid), feature_dim), np.shape(features)
    if shape != wanted:
        raise ValueError(f"{where}: features of grid {segment.grid}: expected {wanted}, got {shape}")


def _features(targets: list[Segment], feature_dim: int) -> tuple[Tensor, Tensor]:
    """Features of the positions of targets, segment by segment, and whether they have some."""
    sizes = [math.prod(segment.visual_grid) for segment in targets]
    has = np.repeat(np.array([segment.features is not None for segment in targets], bool), sizes)
    features = np.zeros((len(has), feature_dim), np.float32)
    given = [segment.features for segment in targets if segment.features is not None]
    if given:
        features[has] = np.concatenate(given)
    return torch.from_numpy(features), torch.from_numpy(has)


def _lay_out(
    visual: list[_Placed], shape: tuple[int, int], num_segments: int, config: UnifiedConfig, feature_dim: int | None
) -> tuple[dict[str, VisualPart], dict[str, VisualTask]]:
    """The placed segments by representation and by objective."""
    parts: dict[str, VisualPart] = {}
    tasks: dict[str, VisualTask] = {}
    for name in config.representations:
        size, discrete = getattr(config, REPRESENTATIONS[name].size), REPRESENTATIONS[name].discrete
        own = [placed for placed in visual if placed.objective.representation.name == name]
        places = [np.arange(p.places.start, p.places.stop) + p.row * shape[1] for p in own]
        index = np.concatenate([np.empty(0, np.int64), *places])
        values = np.empty(len(index) if discrete else (len(index), size), np.int64 if discrete else np.float32)
        bounds = np.cumsum([0, *map(len, places)])
        for p, a, b in zip(own, bounds, bounds[1:]):
            values[a:b] = p.segment.values
        numbers = np.array([p.row * num_segments + p.number for p in own], np.int64)
        segment = np.repeat(numbers, np.diff(bounds))
        tables = grid_tables([p.segment.visual_grid for p in own]) if config.patchifier(name) == "unet" else None
        parts[name] = VisualPart(torch.from_numpy(index), torch.from_numpy(values), torch.from_numpy(segment), tables)
        for objective, row in OBJECTIVES.items():
            if row.representation.name != name:
                continue
            chosen = [i for i, p in enumerate(own) if p.segment.objective == objective and p.segment.time_cap > 0]
            rows = np.concatenate([np.empty(0, np.int64), *(np.arange(bounds[i], bounds[i + 1]) for i in chosen)])
            losses = np.repeat([own[i].segment.loss for i in chosen], [len(places[i]) for i in chosen])
            weights = np.repeat([own[i].segment.weight for i in chosen], [len(places[i]) for i in chosen])
            caps = torch.zeros(shape[0] * num_segments)
            for i in chosen:
                caps[numbers[i]] = own[i].segment.time_cap
            targets = [own[i].segment for i in chosen if own[i].segment.loss]
            features = _features(targets, feature_dim) if feature_dim and not discrete else ()
            tasks[objective] = VisualTask(
                torch.from_numpy(rows),
                torch.from_numpy(np.flatnonzero(losses)),
                index[rows],
                [
                    (int(numbers[i]), own[i].segment.visual_grid, own[i].segment.time_cap, own[i].segment.loss)
                    for i in chosen
                ],
                caps,
                _weights(weights),
                *features,
            )
    return parts, tasks
