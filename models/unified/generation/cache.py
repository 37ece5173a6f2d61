"""The state of generation: keys and values of a batch of ragged requests. In: prefixes, then tokens and
pictures as they are made. Out: hidden states of what was fed.

Row b owns the first `lengths[b]` places of its cache. A feed writes behind them; what is not kept (`advance`
0, or a shorter row's padding) is overwritten by the next feed, and no mask ever reaches it. Gradients flow through
feeds that are not kept, back to what was fed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omniloom.models.unified.batch import Document, Segment, VisualPart, collate, document_length
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.samplers import Time
from omniloom.models.unified.generation.layer_cache import Feed, Layer, StateLayer
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.patchify import VisualInput, grid_tables
from omniloom.models.unified.places import Places
from omniloom.models.unified.positions import Grid, cells, place
from omniloom.models.unified.representations import OBJECTIVES

_PADDING = 32  # places of a row that are read in vain rather than in another pass


class GenerationState:
    """Caches of B requests. Make it with `prefill`."""

    def __init__(self, model: UnifiedModel, layers: list[Any], lengths: list[int], last: list[int]):
        self.model, self.lengths, self.last = model, lengths, last
        self.layers = layers  # a `Layer` or `StateLayer` of each block: of two states of a model the same
        self.given: VisualInput | None = None  # of the last `feed_visual`, for the head
        self.closing: Tensor | None = None  # hidden (B, width) at <eoi>, where that was fed with the picture

    @property
    def device(self) -> torch.device:
        return self.model.embed.weight.device

    @classmethod
    def prefill(cls, model: UnifiedModel, prefixes: Sequence[Document]) -> tuple[GenerationState, Tensor]:
        """Read the prefixes, pictures in them as clean context. Returns the state and the hidden state
        (B, width) at the end of each. ValueError for an empty prefix, which predicts nothing."""
        lengths = [document_length(prefix) for prefix in prefixes]
        for index, length in enumerate(lengths):
            if not length:
                raise ValueError(f"prefixes[{index}]: expected at least one token, <bos> for example")
        parts = _alike(lengths)
        if len(parts) == 1:
            return cls._read(model, prefixes)
        read = [cls._read(model, [prefixes[row] for row in rows]) for rows in parts]
        order = torch.tensor([row for rows in parts for row in rows]).argsort().to(read[0][1].device)
        layers = [layer.room(layer, len(prefixes), max(lengths)) for layer in read[0][0].layers]
        whole = cls(model, layers, [0] * len(prefixes), [-1] * len(prefixes))
        for rows, (state, _) in zip(parts, read):
            whole.put(rows, state)
        return whole, torch.cat([hidden for _, hidden in read])[order]

    @classmethod
    def _read(cls, model: UnifiedModel, prefixes: Sequence[Document]) -> tuple[GenerationState, Tensor]:
        """`prefill` in one pass, of prefixes that are padded to the longest."""
        lengths = [document_length(prefix) for prefix in prefixes]
        batch = collate([[prefix] for prefix in prefixes], max(lengths), model.config, device=None)
        last = [_placed(chain.from_iterable(map(_pieces, p)), -1, model.config)[1] for p in prefixes]
        layers = [Layer() if model.config.attends(i) else StateLayer() for i in range(model.config.layers)]
        state = cls(model, layers, [0] * len(lengths), [-1] * len(lengths))
        batch = batch.to(state.device)
        clean = torch.zeros((len(lengths), batch.num_segments), device=state.device)
        values = {name: part.values for name, part in batch.parts.items()}
        x, _, places = model.embed_inputs(batch.ids, batch.parts, values, dict.fromkeys(values, clean))
        text = all(segment.kind == "text" for prefix in prefixes for segment in prefix)
        hidden = state._run(x, batch.positions, lengths, "causal" if text else batch.end, places, batch.start)
        state.last = last
        ends = torch.tensor(lengths, device=state.device) - 1
        return state, hidden[torch.arange(len(lengths), device=state.device), ends]

    def _run(
        self,
        x: Tensor,
        positions: Tensor,
        advance: list[int],
        sees: Tensor | str | None = None,
        places: Places | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """x (B, N, width) written behind each row's own. Each position sees its row's own and the first of what is
        fed, as many as `sees` (B, N) says, or all."""
        feed = Feed(self.lengths, x.shape[1], self.device, sees, advance, self.model.config.gau_length)
        for layer in self.layers:
            layer.feed = feed
        with torch.set_grad_enabled(torch.is_grad_enabled() and not any(advance)):
            hidden = self.model.backbone(x, positions, feed.attend, self.layers, places=places, starts=starts)
        self.lengths = [length + step for length, step in zip(self.lengths, advance)]
        return hidden

    def _places(self, pieces: Sequence[tuple], keep: bool) -> Tensor:
        placed = [_placed(pieces, last, self.model.config) for last in self.last]
        if keep:
            self.last = [last for _, last in placed]
        return torch.stack([torch.from_numpy(piece) for piece, _ in placed]).to(self.device)

    def feed_text(self, ids: Sequence[int], keep: list[bool] | None = None) -> Tensor:
        """One token a row; rows with keep False are as if nothing had been fed. Returns hidden (B, width)."""
        counts = [1] * len(ids) if keep is None else [int(kept) for kept in keep]
        return self.feed_tokens(torch.tensor(ids)[:, None], counts)[:, 0]

    def feed_tokens(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """A run of text in every row, ids int64 (B, N), of which the first counts[b] are kept: what follows them is
        as if it had not been fed. Returns hidden (B, N, width)."""
        (B, N), ids = ids.shape, ids.to(self.device)
        steps = torch.arange(1, N + 1, device=self.device)
        line = (torch.tensor(self.last, device=self.device)[:, None] + steps).float()
        self.last = [last + count for last, count in zip(self.last, counts)]
        positions = line[..., None].expand(B, N, self.model.config.axes)
        return self._run(self.model.embed(ids), positions, list(counts), steps.expand(B, N) if N > 1 else None)

    def feed_visual(
        self,
        objective: str,
        values: Tensor,
        grid: Grid,
        time: Time = 0.0,
        *,
        keep: bool,
        first: int = 0,
        step: float = 0.0,
    ) -> Tensor:
        """Positions first..first + N of a segment of `grid` in every row: values (B, N, C) at `time`, from where the
        sampler takes a `step` (`UnifiedConfig.step_sizes`), or codes (B, N), with <boi> and <eoi> where they are
        `joined`. keep: False while they are being drawn, True for the clean result; where only the first ones are kept,
        the next feed goes on with the segment. Returns hidden (B, N, width)."""
        config, name, (B, N) = self.model.config, OBJECTIVES[objective].representation.name, values.shape[:2]
        around = int(joined(config, objective))
        n = N + 2 * around  # places that are fed
        ids = torch.full((B, n), config.specials.pad, device=self.device)
        if around:
            ids[:, 0], ids[:, -1] = opening(config, grid), config.specials.eoi
        rows = torch.arange(B, device=self.device)[:, None]
        index = rows * n + torch.arange(around, around + N, device=self.device)
        part = VisualPart(index.flatten(), values.flatten(0, 1), rows.expand(B, N).flatten())
        if config.patchifier(name) == "unet":
            part.tables = grid_tables([grid] * B).to(self.device)
        if config.one_place:
            part.cells = torch.from_numpy(cells(grid)[first : first + N]).to(self.device).repeat(B, 1)
        times = torch.as_tensor(time, dtype=torch.float32, device=self.device).expand(B)[:, None]
        steps = {name: torch.full((B, 1), step, device=self.device)}
        x, sources, places = self.model.embed_inputs(ids, {name: part}, {name: part.values}, {name: times}, steps=steps)
        self.given = sources[name]
        positions = self._places(
            [("text", 1), ("visual", grid), ("text", 1)] if around else [("visual", grid)],
            keep and first + N == math.prod(grid),
        )[:, first : first + n]
        causal = OBJECTIVES[objective].causal and N > 1
        sees = torch.arange(1, N + 1, device=self.device).expand(B, N) if causal else None
        hidden = self._run(x, positions, [n if keep else 0] * B, sees, places)
        self.closing = hidden[:, -1] if around else None
        return hidden[:, around : around + N]

    def select(self, rows: Sequence[int]) -> GenerationState:
        """A copy of some rows."""
        index = torch.tensor(rows, device=self.device)
        return GenerationState(
            self.model,
            [layer.select(index) for layer in self.layers],
            [self.lengths[b] for b in rows],
            [self.last[b] for b in rows],
        )

    def put(self, rows: Sequence[int], other: GenerationState) -> None:
        """Write the rows of `other` back in the places `rows`."""
        index = torch.tensor(rows, device=self.device)
        for layer, theirs in zip(self.layers, other.layers):
            layer.put(index, theirs, max(other.lengths))
        for b, length, last in zip(rows, other.lengths, other.last):
            self.lengths[b], self.last[b] = length, last

    def stack(self, other: GenerationState) -> GenerationState:
        """The rows of both, this state's first."""
        size = max(max(self.lengths), max(other.lengths))
        layers = [mine.stack(theirs, size) for mine, theirs in zip(self.layers, other.layers)]
        return GenerationState(self.model, layers, self.lengths + other.lengths, self.last + other.last)


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Rows that are read together, the longest first: none is padded by more than a quarter, or `_PADDING`."""
    parts: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[parts[-1][0]] if parts else 0
        if parts and longest - lengths[row] <= max(_PADDING, longest // 4):
            parts[-1].append(row)
        else:
            parts.append([row])
    return [sorted(rows) for rows in parts]


def _pieces(segment: Segment) -> list[tuple]:
    if segment.kind == "text":
        return [("text", len(segment.text_ids))]
    return [("text", 1), ("visual", segment.visual_grid), ("text", 1)]


def _placed(pieces: Iterable[tuple], last: int, config: UnifiedConfig) -> tuple[np.ndarray, int]:
    """Coordinates (n, axes) of pieces behind a token at `last`, and the index of their last token."""
    found = [np.zeros((0, config.axes), np.float32)]
    for piece in pieces:
        coordinates, last = place(config.rope_scheme, piece, last, config.axes)
        found.append(coordinates)
    return np.concatenate(found), last


def joined(config: UnifiedConfig, objective: str) -> bool:
    """Whether <boi> and <eoi> are read together with their picture, which they see."""
    return config.joins_frame and not OBJECTIVES[objective].causal


def opening(config: UnifiedConfig, grid: Grid) -> int:
    """The token before a picture of that grid."""
    return config.specials.bov if grid[0] > 1 else config.specials.boi
