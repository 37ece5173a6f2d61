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

import torch
from torch import Tensor

from omniloom.models.unified.batch import Document, Segment
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.generation.draw import Watch, check_drawing, draw_visual, nothing
from omniloom.models.unified.generation.interleaved import Drawing, InterleavedWriter, WatchText, guided_prefixes
from omniloom.models.unified.generation.sampling import TextSampling, VisualSampling
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.positions import Grid

Seeds = int | Sequence[int]


def seed_list(seeds: Seeds, count: int) -> list[int]:
    """One seed a request; a single int counts up from itself."""
    seeds = [seeds + i for i in range(count)] if isinstance(seeds, int) else [int(s) for s in seeds]
    if len(seeds) != count:
        raise ValueError(f"seeds: expected {count}, one a request, got {len(seeds)}")
    return seeds


def generate_visual(
    model: UnifiedModel,
    prefixes: Sequence[Document],
    grid_thw: Grid,
    visual: VisualSampling,
    seeds: Seeds = 0,
    watch: Watch | None = None,
) -> Tensor:
    """Draw one segment behind each prefix (which does not hold the <boi> itself).

    grid_thw  (t, h, w) of the segment, any size
    visual    with objective and diffusion; of its size and number of frames `grid_thw` says what counts
    seeds     one a request, or an int that counts up
    watch     is told of each step, with what is predicted for the finished segments,
              (B, t h w, C) or codes (B, t h w)
    Returns normalised latents or pixels, float32 (B, t, h, w, C), or codes, int64 (B, t, h, w).
    """
    check_drawing(model.config, visual)
    grid = tuple(int(n) for n in grid_thw)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid_thw: expected (t, h, w), got {grid_thw!r}")
    seeds = seed_list(seeds, len(prefixes))
    if not prefixes:
        return nothing(model.config, grid, visual)
    with torch.inference_mode():
        state, _ = GenerationState.prefill(model, guided_prefixes(prefixes, visual, model.config.specials))
        values = draw_visual(state, [(seed, 0) for seed in seeds], grid, visual, watch)
    # A copy made here is a tensor like any other, which a caller may train on.
    return values.clone().reshape(len(prefixes), *grid, *values.shape[2:])


@torch.inference_mode()
def generate_interleaved(
    model: UnifiedModel,
    prefixes: Sequence[Document],
    text: TextSampling,
    drawing: Drawing = Drawing(VisualSampling()),
    *,
    stop_ids: Sequence[int] | None = None,
    seeds: Seeds = 0,
    watch: WatchText | None = None,
) -> list[list[Segment]]:
    """Go on behind each prefix, text and pictures in turn: where the model writes <boi> or <bov> and `drawing` has
    the matching grid, the picture is drawn and the text goes on behind it.

    text      its max_new_tokens are of a request, pictures' frames apart
    stop_ids  end a request and are left out of its result; <eos> by default
    watch     is told the requests as they stand behind each token; one whose `ended` it sets writes no more
    Returns, for each request, the segments behind its prefix; they can stand in a later prefix.
    """
    seeds = seed_list(seeds, len(prefixes))
    return InterleavedWriter(model, prefixes, text, drawing, stop_ids, seeds, watch).run() if prefixes else []


def generate_text(
    model: UnifiedModel,
    prefixes: Sequence[Document],
    text: TextSampling = TextSampling(),
    *,
    stop_ids: Sequence[int] | None = None,
    seeds: Seeds = 0,
) -> list[list[int]]:
    """`generate_interleaved` with text alone: the ids that each request writes, without the one that ends it."""
    written = generate_interleaved(model, prefixes, text, stop_ids=stop_ids, seeds=seeds)
    return [segments[0].text_ids.tolist() if segments else [] for segments in written]
