"""Text and pictures in turn, for a batch of requests that open and end at different steps. In: a prefix and a seed per
request. Out: by request the segments that follow its prefix.

A step samples one token a row. Rows that write text are fed it; rows that open a picture leave the batch for as long as
it is drawn and come back behind it; rows that end are dropped once they are half of the batch.

Shapes: R rows of the state, each of one request; D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from omniloom.models.unified.batch import Document, Segment, visual_segment
from omniloom.models.unified.config import SpecialIds
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.generation.choice import sample_tokens
from omniloom.models.unified.generation.draw import draw_and_go_on
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.layouts import without
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.positions import Grid

_UNIFORMS = 64


@dataclass(frozen=True)
class Drawing:
    """Pictures between texts."""

    visual: VisualSampling
    """How they are drawn, with objective and diffusion."""
    image_grid: Grid | None = None
    """(t, h, w) of an image; without it none is opened."""
    video_grid: Grid | None = None
    """(t, h, w) of a video; without it none is opened."""
    max_visuals: int = 4
    """Pictures a request; then opening one is forbidden."""

    def grids(self, special: SpecialIds) -> dict[int, Grid]:
        """Token that opens a picture -> the picture's grid."""
        openings = ((special.boi, self.image_grid), (special.bov, self.video_grid))
        return {token: (grid[0], grid[1], grid[2]) for token, grid in openings if grid is not None}


def guided_prefixes(
    prefixes: Sequence[Document], visual: VisualSampling, special: SpecialIds, variants: slice = slice(None)
) -> list[Document]:
    """The prefixes of the rows that `draw_visual` takes: of each variant all requests'."""
    return [
        without(prefix, dropped, special) if dropped else prefix
        for _, dropped in visual.variants[variants]
        for prefix in prefixes
    ]


@dataclass
class Request:
    """One request while it is written. `budget`: text tokens that it may still write."""

    prefix: Document
    seed: int
    budget: int
    segments: list[Segment] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)  # of the text that is being written
    pictures: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.uniforms: list[float] = []

    def uniform(self, step: int) -> float:
        """The number in [0, 1) that step's token is drawn by."""
        if step % _UNIFORMS == 0:
            # Blocks of fixed size: what a request draws depends neither on the batch nor on the limit.
            self.uniforms = torch.rand(_UNIFORMS, generator=self.generator).tolist()
        return self.uniforms[step % _UNIFORMS]

    def write(self, token: int) -> None:
        self.ids.append(token)
        self.budget -= 1
        self.ended = not self.budget

    def close_text(self) -> None:
        """The text that was being written becomes a segment."""
        if self.ids:
            self.segments.append(Segment("text", ids=np.array(self.ids)))
            self.ids = []

    def add_picture(self, objective: str, values: np.ndarray, grid: Grid) -> None:
        self.segments.append(visual_segment(objective, values, grid))
        self.pictures += 1


WatchText = Callable[[Sequence[Request]], None]


class InterleavedWriter:
    """Writes behind all requests at once; see `models.unified.generation.generate.generate_interleaved`."""

    def __init__(
        self,
        model: UnifiedModel,
        prefixes: Sequence[Document],
        text: TextSampling,
        drawing: Drawing,
        stop_ids: Sequence[int] | None,
        seeds: Sequence[int],
        watch: WatchText | None = None,
    ):
        special = model.config.specials
        self.model, self.text, self.drawing, self.watch = model, text, drawing, watch
        self.grids = drawing.grids(special)
        self.stops = set([special.eos] if stop_ids is None else stop_ids)
        specials = {special.pad, special.bos, special.boi, special.bov, special.eoi, special.eos}
        forbidden = sorted(specials - self.stops - set(self.grids))
        self.requests = [Request(prefix, seed, text.max_new_tokens) for prefix, seed in zip(prefixes, seeds)]
        self.rows = list(self.requests)  # of the state; ended ones leave it in time
        self.state, self.hidden_RD = GenerationState.prefill(model, prefixes)
        self.forbidden = torch.tensor(forbidden, dtype=torch.int64, device=self.state.device)

    def run(self) -> list[list[Segment]]:
        """By request, the segments behind its prefix."""
        step = 0
        while not all(request.ended for request in self.rows):
            tokens = self._sample(step)
            openings = self._write(tokens)
            drawing = {row for rows in openings.values() for row in rows}
            keep = [not request.ended and row not in drawing for row, request in enumerate(self.rows)]
            if any(keep):
                self.hidden_RD = self.state.feed_text(tokens, keep)
            for token, rows in openings.items():
                self._draw(rows, self.grids[token])
            if self.watch:
                self.watch(self.requests)
            self._drop_ended()
            step += 1
        for request in self.requests:
            request.close_text()
        return [request.segments for request in self.requests]

    def _sample(self, step: int) -> list[int]:
        """The next token of each row."""
        logits_RV = self.model.text_head(self.hidden_RD).float().index_fill_(1, self.forbidden, -torch.inf)
        if self.grids:
            full = [row for row, request in enumerate(self.rows) if request.pictures >= self.drawing.max_visuals]
            for row in full:
                logits_RV[row, list(self.grids)] = -torch.inf
        uniforms = None
        if self.text.temperature:
            uniforms = torch.tensor([request.uniform(step) for request in self.rows], device=logits_RV.device)
        return sample_tokens(logits_RV, uniforms, self.text).tolist()

    def _write(self, tokens: Sequence[int]) -> dict[int, list[int]]:
        """Write each row's token into its request. Returns the rows that open a picture, by the token that does."""
        openings: dict[int, list[int]] = {}
        for row, (request, token) in enumerate(zip(self.rows, tokens)):
            if request.ended:
                continue
            if token in self.stops:
                request.ended = True
            elif token in self.grids:
                openings.setdefault(token, []).append(row)
            else:
                request.write(token)
        return openings

    def _draw(self, rows: list[int], grid: Grid) -> None:
        """Draw a picture in each of the `rows`, whose state and hidden state then stand behind it."""
        visual, requests = self.drawing.visual, [self.rows[row] for row in rows]
        for request in requests:
            request.close_text()
        part = self.state.select(rows)
        documents = [[*request.prefix, *request.segments] for request in requests]
        if others := guided_prefixes(documents, visual, self.model.config.specials, slice(1, None)):
            part = part.stack(GenerationState.prefill(self.model, others)[0])
        draws = [(request.seed, request.pictures) for request in requests]
        values, behind = draw_and_go_on(part, draws, grid, visual)
        self.state.put(rows, part.select(range(len(rows))))
        index = torch.tensor(rows, device=self.hidden_RD.device)
        self.hidden_RD = self.hidden_RD.index_copy(0, index, behind[: len(rows)].to(self.hidden_RD.dtype))
        for request, picture in zip(requests, values.cpu().numpy()):
            request.add_picture(visual.row.name, picture, grid)

    def _drop_ended(self) -> None:
        """Leave ended rows out of the state where they are at least half of it."""
        staying = [row for row, request in enumerate(self.rows) if not request.ended]
        if staying and len(staying) <= len(self.rows) // 2:
            self.state, self.hidden_RD = self.state.select(staying), self.hidden_RD[staying]
            self.rows = [self.rows[row] for row in staying]
