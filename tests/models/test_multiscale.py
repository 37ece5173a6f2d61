"""The coarser scales of a diffusion loss, and their place in the step over packed rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from visual_batches import forward, is_target

from omniloom.models.patches import pixels_to_patches
from omniloom.models.unified.batch import Segment, collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import FORMULATIONS, DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import corrupt, residual
from omniloom.models.unified.diffusion.formulations import formulation
from omniloom.models.unified.diffusion.multiscale import coarse_error, segment_coarse_error
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.corruption import draw_noise
from omniloom.models.unified.objectives.objective import UnifiedObjective

CONFIG = UnifiedConfig(vocab_size=40, latent_dim=3, width=48, layers=2, heads=4)


def by_hand(residual: torch.Tensor, scales: int) -> float:
    """One segment (t, h, w, C): loops over windows."""
    t, h, w, _ = residual.shape
    total, p = 0.0, 2
    for _ in range(1, scales):
        if p // 2 >= max(h, w):
            break
        windows = [
            residual[f, i : i + p, j : j + p].mean((0, 1))
            for f in range(t)
            for i in range(0, h, p)
            for j in range(0, w, p)
        ]
        total += p * torch.stack(windows).square().mean().item()
        p *= 2
    return total


@pytest.mark.parametrize("grid", [(1, 8, 8), (2, 4, 8), (1, 5, 3), (1, 1, 1), (3, 1, 4)])
@pytest.mark.parametrize("scales", [1, 2, 3, 9])
def test_it_is_the_pooled_mean_square(grid: tuple[int, int, int], scales: int) -> None:
    residual = torch.randn(2, *grid, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.tensor([by_hand(part, scales) for part in residual], dtype=torch.float64)
    torch.testing.assert_close(segment_coarse_error(residual, scales), expected)


def test_composition_counts_more_than_detail() -> None:
    flat = torch.ones(1, 1, 8, 8, 1)
    detail = flat * torch.tensor([1.0, -1.0]).repeat(4).view(8, 1)
    assert segment_coarse_error(flat, 4).item() == 2 + 4 + 8
    assert segment_coarse_error(detail, 4).item() == 0


def test_patches_of_pixels_are_pooled_over_the_frame() -> None:
    frames = torch.randn(2, 1, 3, 6, 9, generator=torch.Generator().manual_seed(0))  # two of one frame, 6x9, p = 3
    patches = pixels_to_patches(frames.transpose(1, 2), 3)
    grids = [(1, 2, 3), (1, 2, 3)]
    expected = 6 * segment_coarse_error(frames.movedim(2, -1), 3).sum()
    torch.testing.assert_close(coarse_error(patches.flatten(0, 3), grids, 3, patch=3), expected)


def visual(grid: tuple[int, int, int], seed: int, loss: bool = True) -> Segment:
    latents = np.random.default_rng(seed).normal(size=(int(np.prod(grid)), 3)).astype(np.float32)
    return Segment("visual", latents=latents, grid=grid, loss=loss)


def text(*ids: int) -> Segment:
    return Segment("text", ids=np.array(ids))


def packed(config: UnifiedConfig = CONFIG):
    rows = [
        [[text(1, 9), visual((1, 4, 4), 0), text(2)], [text(1), visual((2, 2, 3), 1), visual((1, 2, 2), 2, False)]],
        [[text(1, 8, 7), visual((1, 4, 4), 3)]],
    ]
    return collate(rows, 64, config)


def test_targets_are_where_they_are_said_to_be() -> None:
    batch = packed()
    task = batch.tasks["latent_diffusion"]
    assert [grid for _, grid, _, loss in task.segments if loss] == [(1, 4, 4), (2, 2, 3), (1, 4, 4)]
    assert is_target(batch).flatten().nonzero()[:, 0].tolist() == sorted(task.places.tolist())
    assert int(is_target(batch).sum()) == batch.targets["latent_diffusion"] == 16 + 12 + 16


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize("scales", [1, 3])
def test_the_step_computes_it_over_packed_rows(name: str, scales: int) -> None:
    diffusion = DiffusionConfig(name, multiscale=scales, weight="min_snr", data_std=0.7)
    torch.manual_seed(0)
    model = UnifiedModel(CONFIG)
    torch.nn.init.normal_(model.visual_out.weight, std=0.1)
    objective, batch, row = UnifiedObjective(model, diffusion), packed(), formulation(diffusion)
    part, task = batch.parts["latents"], batch.tasks["latent_diffusion"]
    noise, times = draw_noise(diffusion, batch, 3, 3, 0)
    noise, inputs, expected, count, at = noise.flatten(0, 1)[part.index], part.values.clone(), 0.0, 0, {}
    for number, *_ in task.segments:
        places = (part.segment == number).nonzero()[:, 0]
        t = at[number] = times.flatten()[number]
        inputs[places] = corrupt(diffusion, part.values[places], noise[places], t) * row.input_scale(t)
    told = torch.zeros(times.numel())
    for number in at:
        told[number] = at[number]
    _, predictions = forward(model, batch, row.c_noise(told.view_as(times)), {"latents": inputs})
    for number, grid, _, _ in task.segments:
        places = (part.segment == number).nonzero()[:, 0]
        rest = residual(diffusion, predictions["latents"][places], part.values[places], noise[places], at[number])
        size = int(np.prod(grid))
        expected += size * (rest.square().mean().item() + by_hand(rest.detach().view(*grid, 3), scales))
        count += size
    loss, logs = objective(batch, 3)
    assert logs["visual_loss"].item() == pytest.approx(expected / count, rel=1e-5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_wide_patches_are_warned_of_where_training_starts() -> None:
    wide = UnifiedConfig(vocab_size=40, latent_dim=64, width=128, layers=1, heads=4)
    with pytest.warns(UserWarning, match="64 numbers at a width of 128"):
        UnifiedObjective(UnifiedModel(wide), DiffusionConfig())
