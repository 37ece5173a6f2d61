"""The example of an objective: its arithmetic; and, installed as a distribution, it is trained, drawn with and
measured without an edit of the tree."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from distributions import EXAMPLES, install

from omniloom.models.unified.batch import collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.layouts import text_to_visual, visual_to_text
from omniloom.models.unified.objectives.corruption import mask_ratio
from omniloom.models.unified.representations import OBJECTIVES

EXAMPLE = EXAMPLES / "uniform_objective"
SIZE = 5
CONFIG = UnifiedConfig(vocab_size=40, codebook_size=SIZE, width=32, layers=1, heads=2)
GRID = (1, 40, 50)
# On latents: what lies behind a caption is guessed at once, from nothing but zeros.
GUESS_ROW = """
from omniloom.models.unified.representations import REPRESENTATIONS, VisualObjective
ROW = VisualObjective("latent_guess", REPRESENTATIONS["latents"], 17, "guess_module:Guess", "guess_module:draw")
"""
GUESS = """
import torch
from omniloom.models.unified.objectives.losses import Shown


class Guess:
    def __init__(self, row, config, diffusion):
        self.name = row.name

    def show(self, batch, seed):
        task, part = batch.tasks[self.name], batch.parts["latents"]
        clean, index, caps = part.values[task.rows], part.index[task.rows], task.caps.view(batch.ids.shape[0], -1)
        hidden = task.caps.flatten()[part.segment[task.rows]] == 1
        shown = clean.masked_fill(hidden[:, None], 0.0)
        return Shown(shown, index[task.targets], torch.zeros_like(caps), extras={"clean": clean[task.targets]})

    def error(self, prediction, shown, batch):
        return (prediction - shown.extras["clean"]).square().mean(-1).sum()


def draw(canvas):
    zeros = torch.zeros(len(canvas.generators), canvas.count, canvas.state.model.config.latent_dim)
    return canvas.predict(canvas.feed(zeros, keep=False))
"""
PROJECT = """
[project]
name = "latent-guess"
version = "1.0"
[project.entry-points."omniloom.objectives"]
latent_guess = "guess_row:ROW"
[tool.setuptools]
py-modules = ["guess_row", "guess_module"]
"""


@pytest.fixture
def uniform(monkeypatch):
    """The example's module, its row being in the table."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import uniform_module
    import uniform_objective

    monkeypatch.setitem(OBJECTIVES, "uniform_code", uniform_objective.ROW)
    return uniform_module


@pytest.fixture
def loss(uniform):
    return uniform.UniformCodeLoss(OBJECTIVES["uniform_code"], CONFIG)


def codes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SIZE, GRID[1] * GRID[2])


def drawing(seed: int) -> list:
    return text_to_visual([9, 8], codes(seed), GRID, CONFIG.specials, objective="uniform_code")


def describing(seed: int, max_time: float) -> list:
    return visual_to_text(codes(seed), GRID, [20], CONFIG.specials, "uniform_code", max_time)


# ---- the arithmetic ----


@pytest.mark.parametrize("before, after", [(0.0, 0.3), (0.2, 0.9), (0.5, 0.6), (0.4, 1.0)])
def test_the_posterior_is_bayes_over_all_codes(uniform, before, after):
    def transition(kept: float) -> np.ndarray:
        return kept * np.eye(SIZE) + (1 - kept) / SIZE

    for clean in range(SIZE):
        for noisy in range(SIZE):
            # p(s, t | clean) over s, where s makes t: the product of the two transitions is that from clean to t.
            joint = transition(after)[clean] * transition(before / after)[:, noisy]
            assert joint.sum() == pytest.approx(transition(before)[clean, noisy])
            found = uniform.posterior(torch.tensor(noisy), torch.tensor(clean), before, after, SIZE)
            np.testing.assert_allclose(found / found.sum(), joint / joint.sum(), atol=1e-12)


def test_shown_are_codes_of_which_the_ratio_is_drawn_anew(loss):
    documents = [[drawing(0), describing(1, 0.0)], [drawing(2), describing(3, 0.5)]]
    length = 4100
    shown = loss.show(collate(documents, length, CONFIG), [7, 8])
    segments = shown.values.split(GRID[1] * GRID[2])  # clean context is shown as it is, and none of these
    count, other = len(codes(0)), (SIZE - 1) / SIZE  # a code drawn anew is another one in 4 of 5 cases
    changed = [float((part.numpy() != codes(seed)).mean()) / other for part, seed in zip(segments, (0, 2, 3))]
    ratios = []
    for seed in (7, 8):
        # A segment's progress is what its row's seed draws behind the positions' numbers.
        generator = torch.Generator().manual_seed((seed + 32 * 0x9E3779B97F4A7C15) % (1 << 63))
        ratios.append(mask_ratio(torch.rand(2, length, generator=generator)[1, :2].double()))
    expected = [float(ratios[0][0]), float(ratios[1][0]), 0.5 * float(ratios[1][1])]
    assert changed == pytest.approx(expected, abs=4 * (0.25 / count / other) ** 0.5)
    new = segments[0].numpy()[segments[0].numpy() != codes(0)]
    assert np.bincount(new, minlength=SIZE).min() > 0.1 * len(new)
    alone = loss.show(collate(documents[1:], length, CONFIG), [8])
    assert torch.equal(alone.values, torch.cat(segments[1:]))


def test_every_target_is_asked_for_its_code_and_counts_by_its_weight(loss):
    heavy = [replace(segment, weight=3.0) for segment in drawing(2)]
    batch = collate([[drawing(0), describing(1, 0.5)], [heavy]], 4100, CONFIG)
    shown = loss.show(batch, [1, 2])
    places = [range(row * 4100 + 4, row * 4100 + 4 + len(codes(0))) for row in (0, 1)]
    assert shown.places.tolist() == [place for part in places for place in part]
    logits = torch.randn(2 * len(codes(0)), SIZE, generator=torch.Generator().manual_seed(0))
    picked = logits.log_softmax(-1)[torch.arange(len(logits)), torch.from_numpy(np.concatenate((codes(0), codes(2))))]
    first, second = -picked.split(len(codes(0)))[0].sum(), -picked.split(len(codes(0)))[1].sum()
    torch.testing.assert_close(loss.error(logits, shown, batch), first + 3 * second)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_exact_network_draws_the_distribution_of_the_data(uniform, steps):
    """Of single codes that are independent: p(clean | noisy) by Bayes at each step's share. All steps' errors add up,
    so that the frequencies are those of the data for any number of steps."""
    data, count = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04], dtype=torch.float64), 40_000
    step = iter(range(steps))

    def predict(noisy: torch.Tensor) -> torch.Tensor:
        kept = 1 - float(mask_ratio(next(step) / steps))
        likelihood = kept * torch.eye(SIZE, dtype=torch.float64) + (1 - kept) / SIZE
        return (data[:, None] * likelihood).log()[:, noisy].movedim(0, -1)

    generator = torch.Generator().manual_seed(3)
    canvas = SimpleNamespace(
        count=count,
        how=SimpleNamespace(num_steps=steps),
        state=SimpleNamespace(model=SimpleNamespace(config=CONFIG)),
        drawn=lambda function, *shape: function(1, *shape, generator=generator),
        feed=lambda codes, keep: codes,
        predict=predict,
        choose=lambda logits, u: torch.searchsorted(logits.softmax(-1).cumsum(-1), u.double()[..., None])[..., 0],
    )
    found = torch.bincount(uniform.denoise(canvas)[0], minlength=SIZE) / count
    torch.testing.assert_close(found.double(), data, rtol=0, atol=4 * (0.25 / count) ** 0.5)


# ---- installed ----


def test_it_is_trained_resumed_drawn_with_evaluated_and_sampled(tmp_path):
    source = tmp_path / "latent_guess"
    source.mkdir()
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "guess_row.py").write_text(GUESS_ROW)
    (source / "guess_module.py").write_text(GUESS)
    site = tmp_path / "site"
    for folder in (EXAMPLE, source):
        install(folder, site)
    tests = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (site, tests, tests / "stages")))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--basetemp", str(tmp_path / "inner")),
            str(tests / "stages" / "added_objectives.py"),
        ],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "6 passed" in done.stdout
