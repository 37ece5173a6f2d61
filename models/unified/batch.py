"""From documents to tensors. In: rows of documents, each a list of `Segment`s (numpy), as the packer placed
them. Out: a `Batch` with everything that a training step reads, noise and times apart.

In the token stream a visual segment is <boi>, its t*h*w positions, <eoi>; <bov> opens it where t > 1.
`collate` adds these three; <bos> and <eos> are the documents' own (`models.unified.layouts` writes the usual
documents).

Which position is asked for which token:
- a text token with `loss` is asked of the position before it, the document's first excepted;
- <boi> or <bov> of a visual segment with `loss` is asked of the text before it;
- the first text token after a segment is asked of its <eoi>;
- nothing is asked of <boi> and of visual positions in text: the segment's length is the sampler's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from models.unified.config import UnifiedConfig
from models.unified.mask import intervals
from models.unified.positions import Grid, place

IGNORE = -100


@dataclass
class Segment:
    """A run of text or one picture, of a document.

    kind     "text" or "visual"
    ids      text: integers (n,)
    latents  visual: floats (t*h*w, C) in the order time, row, column, normalised per channel
    grid     visual: (t, h, w)
    loss     text: its tokens are targets. visual: it is noised and predicted (True), or stands as clean
             context with time 0 (False)
    """

    kind: str
    ids: np.ndarray | None = None
    latents: np.ndarray | None = None
    grid: Grid | None = None
    loss: bool = True

    def __post_init__(self) -> None:
        if self.kind == "text":
            if self.ids is None or np.ndim(self.ids) != 1:
                raise ValueError("Segment.ids: a text segment needs a one-dimensional array of token ids")
            self.ids = np.asarray(self.ids, dtype=np.int64)
        elif self.kind == "visual":
            if self.grid is None or len(self.grid) != 3 or min(self.grid) < 1:
                raise ValueError(f"Segment.grid: a visual segment needs (t, h, w), got {self.grid!r}")
            self.grid = tuple(int(n) for n in self.grid)
            count = int(np.prod(self.grid))
            if self.latents is None or np.ndim(self.latents) != 2 or len(self.latents) != count:
                got = None if self.latents is None else np.shape(self.latents)
                raise ValueError(f"Segment.latents: grid {self.grid} needs ({count}, C), got {got}")
        else:
            raise ValueError(f"Segment.kind: expected text or visual, got {self.kind!r}")

    @property
    def length(self) -> int:
        """Places it takes in a row, <boi> and <eoi> included."""
        return len(self.ids) if self.kind == "text" else len(self.latents) + 2


Document = Sequence[Segment]


def document_length(document: Document) -> int:
    """Places that a document takes in a row: what a packer counts."""
    return sum(segment.length for segment in document)


@dataclass
class Batch:
    """B rows of L positions with up to S visual segments each (S is at least 1).

    ids             int64 (B, L); pad at visual positions and in padding
    labels          int64 (B, L): the token that the position has to predict, -100 where nothing is asked
    label_index     int64 (M,): flat places (b*L + l) of the labels, which alone need vocabulary logits
    latents         float32 (B, L, C): clean latents at visual positions, 0 elsewhere
    visual          bool (B, L): visual positions
    visual_loss     bool (B, L): those of them that are targets
    segment_index   int64 (B, L): number of the visual segment in its row, -1 outside
    segment_loss    bool (B, S): targets; False for context and where a row has fewer segments
    start, end      int64 (B, L): what each position sees (`models.unified.mask`)
    positions       float32 (B, L, axes)
    document_index  int64 (B, L): number of the document in its row, -1 in padding
    target_spans    of each visual segment that is a target: (row, first position, (t, h, w)), host integers
    tokens          counts, host integers: text and visual (useful places by modality), padding, and the
                    targets text_targets and visual_targets that losses are normalised by
    """

    ids: Tensor
    labels: Tensor
    label_index: Tensor
    latents: Tensor
    visual: Tensor
    visual_loss: Tensor
    segment_index: Tensor
    segment_loss: Tensor
    start: Tensor
    end: Tensor
    positions: Tensor
    document_index: Tensor
    target_spans: list[tuple[int, int, Grid]]
    tokens: dict[str, int]

    @property
    def num_segments(self) -> int:
        return self.segment_loss.shape[1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {
            name: value.to(device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        return Batch(**moved)


def collate(rows: Sequence[Sequence[Document]], length: int, config: UnifiedConfig) -> Batch:
    """Lay out packed rows: rows[b] holds the documents of row b, in order, from position 0.

    length is L. ValueError naming row and document where a row does not fit, latents have other channels than
    `config.latent_dim`, or an id is outside the vocabulary. Deterministic: a function of its arguments.
    """
    B, L, C, special = len(rows), length, config.latent_dim, config.specials
    ids = np.full((B, L), special.pad, np.int64)
    labels = np.full((B, L), IGNORE, np.int64)
    latents = np.zeros((B, L, C), np.float32)
    visual = np.zeros((B, L), bool)
    visual_loss = np.zeros((B, L), bool)
    segment_index = np.full((B, L), -1, np.int64)
    document_index = np.full((B, L), -1, np.int64)
    start, end = np.empty((B, L), np.int64), np.empty((B, L), np.int64)
    # Padding sits at the origin: any finite place does, as nothing but itself sees it.
    coordinates = np.zeros((B, L, config.axes), np.float32)
    segment_losses: list[list[bool]] = []
    target_spans: list[tuple[int, int, Grid]] = []

    for b, documents in enumerate(rows):
        at, losses, document_spans, visual_spans = 0, [], [], []
        for d, document in enumerate(documents):
            begin, last, where = at, -1, f"row {b}, document {d}"
            if begin + document_length(document) > L:
                raise ValueError(
                    f"{where}: needs {document_length(document)} places, {L - begin} of {L} are left"
                )
            for segment in document:
                if segment.kind == "text":
                    n = len(segment.ids)
                    ids[b, at : at + n] = segment.ids
                    if segment.loss and n:
                        labels[b, max(at - 1, begin) : at + n - 1] = segment.ids[1 if at == begin else 0 :]
                    coordinates[b, at : at + n], last = place(
                        config.rope_scheme, ("text", n), last, config.axes
                    )
                    at += n
                    continue
                n = len(segment.latents)
                if segment.latents.shape[1] != C:
                    raise ValueError(
                        f"{where}: latents have {segment.latents.shape[1]} channels, latent_dim is {C}"
                    )
                opening = special.bov if segment.grid[0] > 1 else special.boi
                if segment.loss and at > begin:
                    labels[b, at - 1] = opening
                ids[b, at], ids[b, at + n + 1] = opening, special.eoi
                inside = slice(at + 1, at + n + 1)
                for size, span in (
                    (1, slice(at, at + 1)),
                    (segment.grid, inside),
                    (1, slice(at + n + 1, at + n + 2)),
                ):
                    kind = "text" if size == 1 else "visual"
                    coordinates[b, span], last = place(config.rope_scheme, (kind, size), last, config.axes)
                latents[b, inside] = segment.latents
                visual[b, inside] = True
                visual_loss[b, inside] = segment.loss
                segment_index[b, inside] = len(losses)
                losses.append(segment.loss)
                if segment.loss:
                    target_spans.append((b, at + 1, segment.grid))
                visual_spans.append((at + 1, at + n + 1))
                at += n + 2
            document_index[b, begin:at] = d
            document_spans.append((begin, at))
        start[b], end[b] = intervals(L, document_spans, visual_spans)
        segment_losses.append(losses)

    if ids.size and (ids.min() < 0 or ids.max() >= config.vocab_size):
        b = int(np.argmax((ids < 0).any(1) | (ids >= config.vocab_size).any(1)))
        raise ValueError(f"row {b}: token ids outside 0..{config.vocab_size - 1}")
    S = max(1, *(len(losses) for losses in segment_losses)) if segment_losses else 1
    segment_loss = np.zeros((B, S), bool)
    for b, losses in enumerate(segment_losses):
        segment_loss[b, : len(losses)] = losses
    label_index = np.flatnonzero(labels != IGNORE)
    useful = int((document_index >= 0).sum())
    tokens = {
        "text": useful - int(visual.sum()),
        "visual": int(visual.sum()),
        "padding": B * L - useful,
        "text_targets": len(label_index),
        "visual_targets": int(visual_loss.sum()),
    }
    arrays = (
        ids,
        labels,
        label_index,
        latents,
        visual,
        visual_loss,
        segment_index,
        segment_loss,
        start,
        end,
        coordinates,
        document_index,
    )
    return Batch(*(torch.from_numpy(array) for array in arrays), target_spans=target_spans, tokens=tokens)
