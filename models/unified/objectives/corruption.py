"""Corruption of pictures for training. In: a `Batch` and a seed. Out: noise and times, masked
codes, and the positions that enter as a learned token.

A seed is an int, which seeds a generator of its own for each objective; a generator, whose draws are moved to the
batch's device, so that a GPU run can repeat a CPU run's noise; or B ints, one a row: each row then draws on the CPU
from its own seed, which depends on no other row, on no rank and on no batch size.

Shapes: B rows, L places of a row, S visual segments of a row at most, C channels of a value; of one objective K
positions in I segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def row_seeds(seed: Seed, rows: int) -> list[int]:
    """A seed for each of the rows, of draws that are none of a stream's."""
    if isinstance(seed, torch.Generator):
        return torch.randint(_SEED_RANGE - 1, (rows,), generator=seed, device=seed.device).tolist()
    return [seed + row for row in range(rows)] if isinstance(seed, int) else [int(value) for value in seed]


def draw_noise(config: DiffusionConfig, batch: Batch, channels: int, seed: Seed, stream: int) -> tuple[Tensor, Tensor]:
    """Noise (B, L, C), also where it is not needed, and path times (B, S) before any cap; on the device of the
    generators."""
    (B, L), S = batch.ids.shape, batch.num_segments
    generators = _generators(seed, B, stream, batch.ids.device)
    if isinstance(seed, int | torch.Generator):
        times_BS = sample_times(config, (B, S), generators[0])
        return torch.randn((B, L, channels), generator=generators[0], device=generators[0].device), times_BS
    times_BS, noise_BLC = torch.empty(B, S), torch.empty(B, L, channels)
    for row, generator in enumerate(generators):
        torch.randn((L, channels), generator=generator, out=noise_BLC[row])
        # Always L times: how many segments the longest row of the batch has must not shift the draws.
        times_BS[row] = sample_times(config, (L,), generator)[:S]
    return noise_BLC, times_BS


def draw_by_place(
    batch: Batch, seed: Seed, stream: int, draw: Callable[[tuple[int, ...], torch.Generator], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """What `draw` gives of a shape and a generator, a number or several for each of the (B, L) places, also where they
    are not needed; on the device of the generators."""
    B, L = batch.ids.shape
    generators = _generators(seed, B, stream, batch.ids.device)
    if isinstance(seed, int | torch.Generator):
        return draw((B, L), generators[0])
    return tuple(torch.stack(several) for several in zip(*(draw((L,), generator) for generator in generators)))


def mask_ratio(progress: Tensor | float) -> Tensor | float:
    """Share of codes that are masked, 1 to 0 as progress goes from 0 to 1: cos(pi / 2 progress), the cosine schedule
    of MaskGIT (arXiv 2202.04200, section 3.3). Training draws the progress uniformly, sampling walks it evenly."""
    return torch.cos(math.pi / 2 * progress) if isinstance(progress, Tensor) else math.cos(math.pi / 2 * progress)


def draw_masks(batch: Batch, objective: str, seed: Seed, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the K positions of `batch.tasks[objective]`: bool (K,), and float32 (K,), one over the masked share of
    the position's segment.

    Of n positions max(1, ceil(n r max_time)) are masked, with r by `mask_ratio` of the segment's own progress; every
    set of that size is as likely as another.
    """
    scores_K, progress_I = draw_uniforms(batch, objective, seed, stream)
    caps_I = np.array([cap for _, _, cap, _ in batch.tasks[objective].segments])
    sizes_I = _sizes(batch, objective)
    counts_I = np.maximum(1, np.ceil(sizes_I * cast(Tensor, mask_ratio(progress_I)).numpy() * caps_I)).astype(np.int64)
    return _lowest(scores_K, sizes_I, counts_I), np.repeat((sizes_I / counts_I).astype(np.float32), sizes_I)


def draw_patch_masks(low: float, high: float, batch: Batch, objective: str, seed: Seed, stream: int) -> np.ndarray:
    """Which of the K positions of `batch.tasks[objective]` enter as a learned token (Tuna-2, arXiv 2604.24763): bool
    (K,). Of a target's n positions round(n r), with r drawn evenly from low to high and cut at 0; every set of that
    size is as likely as another. Of context none."""
    scores_K, share_I = draw_uniforms(batch, objective, seed, stream)
    sizes_I = _sizes(batch, objective)
    is_target_I = np.array([loss for *_, loss in batch.tasks[objective].segments], bool)
    ratios_I = np.maximum(0, low + (high - low) * share_I.numpy()) * is_target_I
    return _lowest(scores_K, sizes_I, np.rint(sizes_I * ratios_I).astype(np.int64))


def draw_uniforms(batch: Batch, objective: str, seed: Seed, stream: int) -> tuple[np.ndarray, Tensor]:
    """Uniform numbers in [0, 1), float64: (K,), one for each position of `batch.tasks[objective]`, and (I,), one for
    each of its segments. All drawing from a seed that objectives on codes do is made of them."""
    (B, L), task = batch.ids.shape, batch.tasks[objective]
    generators = _generators(seed, B, stream, "cpu")
    shape = (B, 2, L) if isinstance(seed, int | torch.Generator) else (2, L)
    uniforms_B2L = torch.cat(
        [torch.empty(0, 2, L)]
        + [torch.rand(shape, generator=g, device=g.device).cpu().view(-1, 2, L) for g in generators]
    )
    segments_I = torch.tensor([number for number, *_ in task.segments], dtype=torch.int64)
    by_segment_I = uniforms_B2L[:, 1, : batch.num_segments].flatten().double()[segments_I]
    return uniforms_B2L[:, 0].flatten().double().numpy()[task.places], by_segment_I


def _sizes(batch: Batch, objective: str) -> np.ndarray:
    """Positions of each segment, int64 (I,)."""
    return np.array([math.prod(grid) for _, grid, _, _ in batch.tasks[objective].segments], np.int64)


def _lowest(scores_K: np.ndarray, sizes_I: np.ndarray, counts_I: np.ndarray) -> np.ndarray:
    """bool (K,): whether a position's score is among the `counts_I` lowest of its segment."""
    segment_K = np.repeat(np.arange(len(sizes_I)), sizes_I)
    # The scores lie in [0, 1), so that this sorts segment by segment.
    order_K = np.lexsort((scores_K, segment_K))
    rank_K = np.empty_like(order_K)
    rank_K[order_K] = np.arange(len(order_K)) - np.repeat(np.cumsum(sizes_I) - sizes_I, sizes_I)
    return rank_K < counts_I[segment_K]
