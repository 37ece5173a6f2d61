"""What training does to pictures before the network sees them. In: a `Batch` and a seed. Out: noisy latents or
pixels, masked codes, the times, and which positions enter as a learned token.

A seed is an int, which seeds a generator of its own for each objective; a generator, whose draws are moved to the
batch's device, so that a GPU run can repeat a CPU run's noise; or B ints, one a row: each row then draws on the CPU
from its own seed, which depends on no other row, on no rank and on no batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor

from omniloom.models.unified.batch import Batch
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import sample_times

Seed = int | torch.Generator | Sequence[int]
_SEED_STEP = 0x9E3779B97F4A7C15
_SEED_RANGE = 1 << 63


def _generators(seed: Seed, rows: int, stream: int, device: torch.device | str) -> list[torch.Generator]:
    """One generator for the batch, or one a row. Streams of one seed are independent; stream 0 is the seed itself."""

    def make(value: int, where: torch.device | str) -> torch.Generator:
        return torch.Generator(where).manual_seed((value + stream * _SEED_STEP) % _SEED_RANGE if stream else value)

    if isinstance(seed, torch.Generator):
        return [seed]
    if isinstance(seed, int):
        return [make(seed, device)]
    if len(seed) != rows:
        raise ValueError(f"seed: expected {rows} integers, one a row, got {len(seed)}")
    return [make(int(value), "cpu") for value in seed]


def draw_noise(config: DiffusionConfig, batch: Batch, channels: int, seed: Seed, stream: int) -> tuple[Tensor, Tensor]:
    """Noise (B, L, channels), also where it is not needed, and path times (B, S) before any cap; on the device of the
    generators."""
    (B, L), S = batch.ids.shape, batch.num_segments
    generators = _generators(seed, B, stream, batch.ids.device)
    if isinstance(seed, int | torch.Generator):
        times = sample_times(config, (B, S), generators[0])
        return torch.randn((B, L, channels), generator=generators[0], device=generators[0].device), times
    times, noise = torch.empty(B, S), torch.empty(B, L, channels)
    for row, generator in enumerate(generators):
        torch.randn((L, channels), generator=generator, out=noise[row])
        # Always L times: how many segments the longest row of the batch has must not shift the draws.
        times[row] = sample_times(config, (L,), generator)[:S]
    return noise, times


def mask_ratio(progress: Tensor | float) -> Tensor | float:
    """Share of codes that are masked, 1 to 0 as progress goes from 0 to 1: cos(pi / 2 progress), the cosine schedule
    of MaskGIT (arXiv 2202.04200, section 3.3). Training draws the progress uniformly, sampling walks it evenly."""
    return torch.cos(math.pi / 2 * progress) if isinstance(progress, Tensor) else math.cos(math.pi / 2 * progress)


def draw_masks(batch: Batch, objective: str, seed: Seed, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the K positions of `batch.tasks[objective]`: bool (K,), which are masked, and float32 (K,), one over the
    masked share of their segment.

    Of n positions max(1, ceil(n r max_time)) are masked, with r by `mask_ratio` of the segment's own progress; which
    ones, every set is as likely as another.
    """
    task = batch.tasks[objective]
    scores, progress = draw_uniforms(batch, objective, seed, stream)
    caps = np.array([cap for _, _, cap, _ in task.segments])
    sizes = _sizes(batch, objective)
    counts = np.maximum(1, np.ceil(sizes * cast(Tensor, mask_ratio(progress)).numpy() * caps)).astype(np.int64)
    return _first(scores, sizes, counts), np.repeat((sizes / counts).astype(np.float32), sizes)


def draw_patch_masks(low: float, high: float, batch: Batch, objective: str, seed: Seed, stream: int) -> np.ndarray:
    """Of the K positions of `batch.tasks[objective]`: bool (K,), which enter as a learned token (Tuna-2, arXiv
    2604.24763). Of a target's n positions round(n r), with r drawn evenly from low to high and cut at 0; which ones,
    every set is as likely as another. Of context none."""
    scores, share = draw_uniforms(batch, objective, seed, stream)
    sizes = _sizes(batch, objective)
    targets = np.array([loss for *_, loss in batch.tasks[objective].segments], bool)
    ratios = np.maximum(0, low + (high - low) * share.numpy()) * targets
    return _first(scores, sizes, np.rint(sizes * ratios).astype(np.int64))


def draw_uniforms(batch: Batch, objective: str, seed: Seed, stream: int) -> tuple[np.ndarray, Tensor]:
    """Uniform numbers in [0, 1), float64: (K,), one for each position of `batch.tasks[objective]`, and one for each of
    its segments. All drawing from a seed that objectives on codes do is made of them."""
    (B, L), task = batch.ids.shape, batch.tasks[objective]
    generators = _generators(seed, B, stream, "cpu")
    shape = (B, 2, L) if isinstance(seed, int | torch.Generator) else (2, L)
    drawn = torch.cat(
        [torch.empty(0, 2, L)]
        + [torch.rand(shape, generator=g, device=g.device).cpu().view(-1, 2, L) for g in generators]
    )
    numbers = torch.tensor([number for number, *_ in task.segments], dtype=torch.int64)
    by_segment = drawn[:, 1, : batch.num_segments].flatten().double()[numbers]
    return drawn[:, 0].flatten().double().numpy()[task.places], by_segment


def _sizes(batch: Batch, objective: str) -> np.ndarray:
    return np.array([math.prod(grid) for _, grid, _, _ in batch.tasks[objective].segments], np.int64)


def _first(scores: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """bool (K,): whether a position's score is among the `counts` lowest of its segment's `sizes`."""
    segment = np.repeat(np.arange(len(sizes)), sizes)
    # The scores lie in [0, 1), so that this sorts segment by segment.
    order = np.lexsort((scores, segment))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank < counts[segment]
