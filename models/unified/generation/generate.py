"""Sampling from the unified model, for batches of requests of different lengths. In: a prefix per request
(text and clean pictures, as `models.unified.layouts` writes them) and a seed per request. Out: token ids,
pictures, or both in turn.

The prefix's keys and values are computed once and reused by every token and every step of a picture
(`models.unified.generation.draw`); under guidance the variants of the prefixes share one batch; a finished picture's
clean keys and values replace the noisy ones. A request draws its randomness from generators of its own on the CPU, so a
seed gives the same sample whatever it is batched with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omniloom.models.unified.batch import Document, Segment, visual_segment
from omniloom.models.unified.config import SpecialIds
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.generation.draw import check_drawing, draw_and_go_on, draw_visual, nothing, sample_tokens
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.layouts import without
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.positions import Grid

Seeds = int | Sequence[int]
_UNIFORMS = 64


def seed_list(seeds: Seeds, count: int) -> list[int]:
    """One seed a request; a single int counts up from itself."""
    seeds = [seeds + i for i in range(count)] if isinstance(seeds, int) else [int(s) for s in seeds]
    if len(seeds) != count:
        raise ValueError(f"seeds: expected {count}, one a request, got {len(seeds)}")
    return seeds


def guided_prefixes(
    prefixes: Sequence[Document], how: VisualSampling, special: SpecialIds, variants: slice = slice(None)
) -> list[Document]:
    """The prefixes of the rows that `draw_visual` takes: of each variant all requests'."""
    return [
        without(prefix, dropped, special) if dropped else prefix
        for _, dropped in how.variants[variants]
        for prefix in prefixes
    ]


@torch.no_grad()
def generate_visual(
    model: UnifiedModel, prefixes: Sequence[Document], grid_thw: Grid, visual: VisualSampling, seeds: Seeds = 0
) -> Tensor:
    """Draw one segment behind each prefix (which does not hold the <boi> itself).

    grid_thw  (t, h, w) of the segment, any size
    visual    with objective and diffusion; of its size and number of frames `grid_thw` says what counts
    seeds     one a request, or an int that counts up
    Returns normalised latents or pixels, float32 (B, t, h, w, C), or codes, int64 (B, t, h, w).
    """
    check_drawing(model.config, visual)
    grid = tuple(int(n) for n in grid_thw)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid_thw: expected (t, h, w), got {grid_thw!r}")
    seeds = seed_list(seeds, len(prefixes))
    if not prefixes:
        return nothing(model.config, grid, visual)
    state, _ = GenerationState.prefill(model, guided_prefixes(prefixes, visual, model.config.specials))
    values = draw_visual(state, [(seed, 0) for seed in seeds], grid, visual)
    return values.reshape(len(prefixes), *grid, *values.shape[2:])


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


@torch.no_grad()
def generate_interleaved(
    model: UnifiedModel,
    prefixes: Sequence[Document],
    text: TextSampling,
    drawing: Drawing = Drawing(VisualSampling()),
    *,
    stop_ids: Sequence[int] | None = None,
    seeds: Seeds = 0,
) -> list[list[Segment]]:
    """Go on behind each prefix, text and pictures in turn: where the model writes <boi> or <bov> and `drawing` has
    the matching grid, the picture is drawn and the text goes on behind it.

    text      its max_new_tokens are of a request, pictures' frames apart
    stop_ids  end a request and are left out of its result; <eos> by default
    Returns, for each request, the segments that were made; they can stand in a later prefix.
    """
    special = model.config.specials
    openings = ((special.boi, drawing.image_grid), (special.bov, drawing.video_grid))
    grids = {token: (grid[0], grid[1], grid[2]) for token, grid in openings if grid is not None}
    stops = set([special.eos] if stop_ids is None else stop_ids)
    forbidden = [
        i
        for i in (special.pad, special.bos, special.boi, special.bov, special.eoi, special.eos)
        if i not in stops and i not in grids
    ]
    seeds = seed_list(seeds, len(prefixes))
    made: list[list[Segment]] = [[] for _ in prefixes]
    if not prefixes:
        return made
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniforms = torch.empty(len(prefixes), 0)
    budget = [text.max_new_tokens] * len(prefixes)
    pictures = [0] * len(prefixes)
    tokens_of: list[list[int]] = [[] for _ in prefixes]
    state, hidden = GenerationState.prefill(model, prefixes)
    rows = list(range(len(prefixes)))  # request of each row of the state; ended ones leave it in time
    alive = set(rows)

    def close_text(request: int) -> None:
        if tokens_of[request]:
            made[request].append(Segment("text", ids=np.array(tokens_of[request])))
            tokens_of[request] = []

    step = 0
    while alive:
        if step % _UNIFORMS == 0:
            # Blocks of fixed size: what a request draws depends neither on the batch nor on the limit.
            uniforms = torch.stack([torch.rand(_UNIFORMS, generator=g) for g in generators])
        logits = model.text_head(hidden).float()
        logits[:, forbidden] = -torch.inf
        for b, request in enumerate(rows):
            if pictures[request] >= drawing.max_visuals:
                logits[b, list(grids)] = -torch.inf
        chosen = sample_tokens(logits, uniforms[rows, step % _UNIFORMS].to(logits.device), text).tolist()
        step += 1
        opened: dict[int, list[int]] = {}
        for b, (request, token) in enumerate(zip(rows, chosen)):
            if request not in alive:
                continue
            if token in stops:
                alive.discard(request)
            elif token in grids:
                opened.setdefault(token, []).append(b)
            else:
                tokens_of[request].append(token)
                budget[request] -= 1
                if not budget[request]:
                    alive.discard(request)
        busy = {b for group in opened.values() for b in group}
        keep = [request in alive and b not in busy for b, request in enumerate(rows)]
        if any(keep):
            hidden = state.feed_text(chosen, keep)
        for token, group in opened.items():
            part = state.select(group)
            for b in group:
                close_text(rows[b])
            so_far = [[*prefixes[rows[b]], *made[rows[b]]] for b in group]
            if others := guided_prefixes(so_far, drawing.visual, special, slice(1, None)):
                part = part.stack(GenerationState.prefill(model, others)[0])
            grid = grids[token]
            draws = [(seeds[rows[b]], pictures[rows[b]]) for b in group]
            values, after = draw_and_go_on(part, draws, grid, drawing.visual)
            state.put(group, part.select(range(len(group))))
            hidden = hidden.index_copy(
                0, torch.tensor(group, device=hidden.device), after[: len(group)].to(hidden.dtype)
            )
            for b, drawn in zip(group, values.cpu().numpy()):
                made[rows[b]].append(visual_segment(drawing.visual.row.name, drawn, grid))
                pictures[rows[b]] += 1
        staying = [b for b, request in enumerate(rows) if request in alive]
        if staying and len(staying) <= len(rows) // 2:
            state, hidden = state.select(staying), hidden[staying]
            rows = [rows[b] for b in staying]
    for request in range(len(prefixes)):
        close_text(request)
    return made


def generate_text(
    model: UnifiedModel,
    prefixes: Sequence[Document],
    text: TextSampling = TextSampling(),
    *,
    stop_ids: Sequence[int] | None = None,
    seeds: Seeds = 0,
) -> list[list[int]]:
    """`generate_interleaved` with text alone: the ids each request gets, the one that ended it left out."""
    made = generate_interleaved(model, prefixes, text, stop_ids=stop_ids, seeds=seeds)
    return [segments[0].text_ids.tolist() if segments else [] for segments in made]
