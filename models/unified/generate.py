"""Sampling from the unified model, for batches of requests of different lengths. In: a prefix per request
(text and clean pictures, as `models.unified.layouts` writes them) and a seed per request. Out: token ids,
latents, or both in turn.

The prefix's keys and values are computed once and reused by every token and every diffusion step; under
classifier-free guidance the conditional and unconditional rows share one batch; a finished picture's clean
keys and values replace the noisy ones. A request draws its randomness from generators of its own on the CPU,
so a seed gives the same sample whatever it is batched with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.unified.batch import Document, Segment
from models.unified.cache import GenerationState
from models.unified.diffusion import NetworkDenoiser, sampling_times
from models.unified.diffusion_config import DiffusionConfig
from models.unified.layouts import prefix_for_visual
from models.unified.model import UnifiedModel
from models.unified.positions import Grid
from models.unified.samplers import MidpointPredictor, check_sampler, sample

Seeds = int | Sequence[int]
_UNIFORMS = 64
_PICTURE_SEED_STEP = 1_000_003


@dataclass(frozen=True)
class VisualSampling:
    """How a picture is drawn: F = F_u + w (F_c - F_u) of the network's outputs, and so of v and of x, with
    w = guidance_scale (arXiv 2207.12598); at 1 there is no unconditional pass. sampler: a name of
    `models.unified.samplers.SAMPLERS`; predictor: of "amed" (`models.unified.amed`)."""

    diffusion: DiffusionConfig
    num_steps: int = 20
    guidance_scale: float = 1.0
    sampler: str = "euler"
    predictor: MidpointPredictor | None = None

    def __post_init__(self) -> None:
        check_sampler(self.sampler, self.predictor)
        sampling_times(self.diffusion, self.num_steps)


def sample_tokens(
    logits: Tensor, uniforms: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """One token a row by inverting the distribution function at `uniforms` (B,) in [0, 1).

    logits (B, V); -inf forbids. temperature 0 takes the likeliest. top_k keeps the k likeliest; top_p the
    smallest set of likeliest tokens that holds at least that probability. Returns int64 (B,).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits, order = (logits.double() / temperature).sort(dim=-1, descending=True, stable=True)
    probabilities = logits.softmax(dim=-1)
    if top_k is not None:
        probabilities[:, top_k:] = 0
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p * probabilities.sum(-1, keepdim=True), 0)
    total = probabilities.cumsum(dim=-1)
    drawn = torch.searchsorted(total, uniforms.double()[:, None] * total[:, -1:], right=True)
    allowed = (probabilities > 0).sum(dim=-1, keepdim=True)
    return order.gather(1, torch.minimum(drawn, allowed - 1))[:, 0]


def seed_list(seeds: Seeds, count: int) -> list[int]:
    """One seed a request; a single int counts up from itself."""
    seeds = [seeds + i for i in range(count)] if isinstance(seeds, int) else [int(s) for s in seeds]
    if len(seeds) != count:
        raise ValueError(f"seeds: expected {count}, one a request, got {len(seeds)}")
    return seeds


def _noise(seed: int, picture: int, count: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + picture * _PICTURE_SEED_STEP)
    return torch.randn(count, channels, generator=generator)


def _draw(
    state: GenerationState, noise: Tensor, grid: Grid, how: VisualSampling, guided: bool, go_on: bool
) -> tuple[Tensor, Tensor | None]:
    """Draw a segment in every row. Where guided, the second half of the rows is unconditional and takes the
    first half's latents. Returns latents (B, N, C) and, if go_on, hidden (rows, width) at <eoi>."""
    model, rows = state.model, len(state.lengths)
    special = model.config.specials
    state.feed_text([special.bov if grid[0] > 1 else special.boi] * rows)

    def all_rows(x: Tensor) -> Tensor:
        return torch.cat((x, x)) if guided else x

    def network(x: Tensor, time: float) -> Tensor:
        prediction = model.visual_head(state.feed_visual(all_rows(x), grid, time, keep=False)).float()
        if guided:
            conditional, unconditional = prediction.chunk(2)
            prediction = unconditional + how.guidance_scale * (conditional - unconditional)
        return prediction

    times = sampling_times(how.diffusion, how.num_steps)
    denoiser = NetworkDenoiser(how.diffusion, network)
    x = sample(how.sampler, denoiser, noise.to(state.device), times, how.predictor)
    if not go_on:
        return x, None
    state.feed_visual(all_rows(x), grid, 0.0, keep=True)
    return x, state.feed_text([special.eoi] * rows)


@torch.no_grad()
def generate_visual(
    model: UnifiedModel,
    prefixes: Sequence[Document],
    grid_thw: Grid,
    *,
    diffusion: DiffusionConfig,
    num_steps: int = 20,
    guidance_scale: float = 1.0,
    unconditional: Sequence[Document] | None = None,
    sampler: str = "euler",
    predictor: MidpointPredictor | None = None,
    seeds: Seeds = 0,
) -> Tensor:
    """Draw one segment behind each prefix (which does not hold the <boi> itself).

    grid_thw       (t, h, w) of the segment, any size
    unconditional  prefixes without the condition, one a request, for guidance_scale other than 1; <bos> alone
                   by default
    sampler, predictor  as in `VisualSampling`
    seeds          one a request, or an int that counts up
    Returns normalised latents, float32 (B, t, h, w, C).
    """
    how = VisualSampling(diffusion, num_steps, guidance_scale, sampler, predictor)
    grid = tuple(int(n) for n in grid_thw)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid_thw: expected (t, h, w), got {grid_thw!r}")
    seeds = seed_list(seeds, len(prefixes))
    if not prefixes:
        return torch.zeros((0, *grid, model.config.latent_dim))
    guided = guidance_scale != 1.0
    if guided:
        unconditional = unconditional or [prefix_for_visual([], model.config.specials)] * len(prefixes)
        if len(unconditional) != len(prefixes):
            raise ValueError(f"unconditional: expected {len(prefixes)}, got {len(unconditional)}")
    state, _ = GenerationState.prefill(model, [*prefixes, *unconditional] if guided else prefixes)
    noise = torch.stack([_noise(seed, 0, int(np.prod(grid)), model.config.latent_dim) for seed in seeds])
    latents, _ = _draw(state, noise, grid, how, guided, go_on=False)
    return latents.reshape(len(prefixes), *grid, -1)


@torch.no_grad()
def generate_interleaved(
    model: UnifiedModel,
    prefixes: Sequence[Document],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Sequence[int] | None = None,
    seeds: Seeds = 0,
    visual: VisualSampling | None = None,
    image_grid: Grid | None = None,
    video_grid: Grid | None = None,
    max_visuals: int = 4,
) -> list[list[Segment]]:
    """Go on behind each prefix, text and pictures in turn: where the model writes <boi> or <bov> and the
    matching grid is given, the picture is drawn and the text goes on behind it.

    max_new_tokens  text tokens a request, pictures' frames apart
    stop_ids        end a request and are left out of its result; <eos> by default
    max_visuals     pictures a request; then, and without a grid or `visual`, opening one is forbidden
    Returns, for each request, the segments that were made; they can stand in a later prefix.
    """
    special = model.config.specials
    grids = {special.boi: image_grid, special.bov: video_grid} if visual is not None else {}
    grids = {token: tuple(grid) for token, grid in grids.items() if grid is not None}
    stops = set([special.eos] if stop_ids is None else stop_ids)
    forbidden = [
        i
        for i in (special.pad, special.bos, special.boi, special.bov, special.eoi, special.eos)
        if i not in stops and i not in grids
    ]
    seeds = seed_list(seeds, len(prefixes))
    made: list[list[Segment]] = [[] for _ in prefixes]
    if not prefixes or max_new_tokens < 1:
        return made
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    uniforms = torch.empty(len(prefixes), 0)
    budget = [max_new_tokens] * len(prefixes)
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
            if pictures[request] >= max_visuals:
                logits[b, list(grids)] = -torch.inf
        chosen = sample_tokens(
            logits, uniforms[rows, step % _UNIFORMS].to(logits.device), temperature, top_k, top_p
        ).tolist()
        step += 1
        drawing: dict[int, list[int]] = {}
        for b, (request, token) in enumerate(zip(rows, chosen)):
            if request not in alive:
                continue
            if token in stops:
                alive.discard(request)
            elif token in grids:
                drawing.setdefault(token, []).append(b)
            else:
                tokens_of[request].append(token)
                budget[request] -= 1
                if not budget[request]:
                    alive.discard(request)
        busy = {b for group in drawing.values() for b in group}
        keep = [request in alive and b not in busy for b, request in enumerate(rows)]
        if any(keep):
            hidden = state.feed_text(chosen, keep)
        for token, group in drawing.items():
            part = state.select(group)
            guided = visual.guidance_scale != 1.0
            if guided:
                blank, _ = GenerationState.prefill(model, [prefix_for_visual([], special)] * len(group))
                part = part.stack(blank)
            grid = grids[token]
            noise = torch.stack(
                [
                    _noise(seeds[rows[b]], pictures[rows[b]], int(np.prod(grid)), model.config.latent_dim)
                    for b in group
                ]
            )
            latents, after = _draw(part, noise, grid, visual, guided, go_on=True)
            state.put(group, part.select(range(len(group))))
            hidden = hidden.index_copy(
                0, torch.tensor(group, device=hidden.device), after[: len(group)].to(hidden.dtype)
            )
            for b, latent in zip(group, latents.cpu().numpy()):
                close_text(rows[b])
                made[rows[b]].append(Segment("visual", latents=latent, grid=grid))
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
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_ids: Sequence[int] | None = None,
    seeds: Seeds = 0,
) -> list[list[int]]:
    """`generate_interleaved` with text alone: the ids each request gets, the one that ended it left out."""
    made = generate_interleaved(
        model,
        prefixes,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_ids=stop_ids,
        seeds=seeds,
    )
    return [segments[0].ids.tolist() if segments else [] for segments in made]
