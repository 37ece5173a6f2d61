"""Packed rows of documents into a `Batch`.

In the token stream a visual segment is <boi>, its t*h*w positions, <eoi>; <bov> opens it where t > 1. `collate` adds
these three; <bos> and <eos> are the documents' own (`models.unified.layouts` writes the usual documents).

The label of a position is the token that follows it, where that token is a target:
- a text token with `loss`, but the first of its document;
- <boi> or <bov> of a visual segment with `loss`, behind text that has `loss` as well;
- the first text token behind a segment, as the label of its <eoi>.
<boi> and visual positions have no label in text: the sampler knows the segment's length. The targets of visual
positions are their objective's (`models.unified.objectives.losses`).

Shapes: B rows, L places of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from omniloom.models.unified.batch.segment import Document, Segment, document_length
from omniloom.models.unified.batch.tensors import IGNORE, Batch, VisualTask
from omniloom.models.unified.batch.visual import PlacedSegment, VisualLayout, weights_or_none
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.mask import BlockTables, QueryBlocks, block_tables, intervals, query_blocks
from omniloom.models.unified.positions import place


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
    sheet = _Sheet(len(rows), length, config, feature_dim)
    for b, documents in enumerate(rows):
        _RowWriter(sheet, b).write(documents)
    return sheet.batch(device)


class _Sheet:
    """The places of a batch while documents are written onto them, in numpy."""

    def __init__(self, B: int, L: int, config: UnifiedConfig, feature_dim: int | None):
        self.shape, self.config, self.feature_dim = (B, L), config, feature_dim
        self.ids_BL = np.full((B, L), config.specials.pad, np.int64)
        self.labels_BL = np.full((B, L), IGNORE, np.int64)
        self.weights_BL = np.ones((B, L), np.float32)
        self.document_BL = np.full((B, L), -1, np.int64)
        self.start_BL, self.end_BL = np.empty((B, L), np.int64), np.empty((B, L), np.int64)
        # Padding sits at the origin: any finite place does, as nothing but itself sees it.
        self.positions = np.zeros((B, L, config.axes), np.float32)
        self.visual: list[PlacedSegment] = []
        self.spans: list[tuple[int, int, int]] = []  # (row, begin, stop) of documents

    def batch(self, device: str | None) -> Batch:
        self._check_ids()
        layout = VisualLayout(self.visual, self.shape, self.config, self.feature_dim)
        parts, tasks = layout.parts_and_tasks()
        label_index = np.flatnonzero(self.labels_BL != IGNORE)
        num_useful = int((self.document_BL >= 0).sum())
        num_visual = sum(len(part.index) for part in parts.values())
        return Batch(
            torch.from_numpy(self.ids_BL),
            torch.from_numpy(self.labels_BL),
            torch.from_numpy(label_index),
            parts,
            tasks,
            layout.num_segments,
            torch.from_numpy(self.start_BL),
            torch.from_numpy(self.end_BL),
            torch.from_numpy(self.positions),
            torch.from_numpy(self.document_BL),
            tokens={
                "text": num_useful - num_visual,
                "visual": num_visual,
                "padding": math.prod(self.shape) - num_useful,
            },
            targets=self._targets(len(label_index), tasks),
            plan=self._plan(device),
            label_weights=weights_or_none(self.weights_BL.flat[label_index]),
        )

    def _check_ids(self) -> None:
        ids_BL, size = self.ids_BL, self.config.vocab_size
        if ids_BL.size and (ids_BL.min() < 0 or ids_BL.max() >= size):
            b = int(np.argmax((ids_BL < 0).any(1) | (ids_BL >= size).any(1)))
            raise ValueError(f"row {b}: token ids outside 0..{size - 1}")

    def _targets(self, labels: int, tasks: dict[str, VisualTask]) -> dict[str, int]:
        targets = {"text": labels, **{name: len(task.targets) for name, task in tasks.items()}}
        if self.feature_dim:
            flags = (task.has_features for task in tasks.values() if task.has_features is not None)
            targets["alignment"] = sum(int(flag_N.sum()) for flag_N in flags)
        return targets

    def _plan(self, device: str | None) -> QueryBlocks | BlockTables | None:
        if device is None:
            return None
        if torch.device(device).type == "cpu":
            return query_blocks(self.start_BL, self.end_BL, self.spans)
        return block_tables(self.start_BL, self.end_BL)


class _RowWriter:
    """Writes the documents of one row, from its first place on.

    at           the place that is next
    number       visual segments so far
    begin, last  of the document: its first place; where its last token sits (`models.unified.positions`)
    loss_before  whether what stands before `at` in the document is a target
    """

    def __init__(self, sheet: _Sheet, row: int):
        self.sheet, self.row, self.config = sheet, row, sheet.config
        self.at = self.number = self.begin = 0
        self.last, self.loss_before = -1, True
        self.documents: list[tuple[int, int]] = []  # spans [begin, stop)
        self.full: list[tuple[int, int]] = []  # those of places that see each other

    def write(self, documents: Sequence[Document]) -> None:
        for index, document in enumerate(documents):
            self._document(index, document)
        sheet, b = self.sheet, self.row
        sheet.start_BL[b], sheet.end_BL[b] = intervals(sheet.shape[1], self.documents, self.full)
        sheet.spans += [(b, begin, stop) for begin, stop in self.documents if begin < stop]

    def _document(self, index: int, document: Document) -> None:
        where, L = f"row {self.row}, document {index}", self.sheet.shape[1]
        self.begin, self.last, self.loss_before = self.at, -1, True
        if self.begin + document_length(document) > L:
            raise ValueError(f"{where}: needs {document_length(document)} places, {L - self.begin} of {L} are left")
        for segment in document:
            if segment.kind == "text":
                self._text(segment)
            else:
                _check_values(segment, self.config, where)
                _check_features(segment, self.sheet.feature_dim, where)
                self._visual(segment)
        self.sheet.document_BL[self.row, self.begin : self.at] = index
        self.documents.append((self.begin, self.at))

    def _text(self, segment: Segment) -> None:
        ids, n = segment.text_ids, len(segment.text_ids)
        self.sheet.ids_BL[self.row, self.at : self.at + n] = ids
        if segment.loss and n:
            labels = slice(max(self.at - 1, self.begin), self.at + n - 1)
            self._label(labels, ids[1 if self.at == self.begin else 0 :], segment.weight)
        self._place(("text", n), slice(self.at, self.at + n))
        self.at, self.loss_before = self.at + n, segment.loss

    def _visual(self, segment: Segment) -> None:
        special, at = self.config.specials, self.at
        opening = special.bov if segment.visual_grid[0] > 1 else special.boi
        if segment.loss and self.loss_before and at > self.begin:
            self._label(at - 1, opening, segment.weight)
        placed = PlacedSegment(self.row, self.number, at + 1, segment)
        inside, closing = placed.places, placed.places.stop
        self.sheet.ids_BL[self.row, at], self.sheet.ids_BL[self.row, closing] = opening, special.eoi
        self._place(("text", 1), slice(at, at + 1))
        self._place(("visual", segment.visual_grid), inside)
        self._place(("text", 1), slice(closing, closing + 1))
        self.sheet.visual.append(placed)
        if not placed.objective.causal:
            around = int(self.config.joins_frame)
            self.full.append((inside.start - around, inside.stop + around))
        self.at, self.number, self.loss_before = closing + 1, self.number + 1, True

    def _label(self, places: slice | int, ids: np.ndarray | int, weight: float) -> None:
        self.sheet.labels_BL[self.row, places], self.sheet.weights_BL[self.row, places] = ids, weight

    def _place(self, piece: tuple, places: slice) -> None:
        coordinates, self.last = place(self.config.rope_scheme, piece, self.last, self.config.axes)
        self.sheet.positions[self.row, places] = coordinates


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


def _check_features(segment: Segment, feature_dim: int | None, where: str) -> None:
    if not feature_dim or segment.features is None:
        return
    expected, shape = (math.prod(segment.visual_grid), feature_dim), np.shape(segment.features)
    if shape != expected:
        raise ValueError(f"{where}: features of grid {segment.grid}: expected {expected}, got {shape}")
