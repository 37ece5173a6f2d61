"""AMED for a trained model (`models.unified.diffusion.amed`). In: the model, prefixes of what is drawn, and how. Out: a
trained predictor, and how far each sampler is from a fine solver at the same number of network evaluations.

A batch's prefixes are read once; its denoiser then goes through their cached keys and values, as sampling does, with
the guidance of sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from omniloom.models.unified.batch import Document
from omniloom.models.unified.diffusion.amed import AmedPredictor, train_amed
from omniloom.models.unified.diffusion.diffusion import NetworkDenoiser, sampling_times
from omniloom.models.unified.diffusion.samplers import sample
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.generation.draw import open_diffusion
from omniloom.models.unified.generation.generate import guided_prefixes
from omniloom.models.unified.generation.sampling import VisualSampling
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.positions import Grid

_FINE_STEPS = 64  # Heun's, whose pictures stand for the exact solution
_HELD_OUT = 1_000_000_007  # seeds of the noise that distances are measured on


def _batch(
    model: UnifiedModel, prefixes: Sequence[Document], grid: Grid, how: VisualSampling, seed: int
) -> tuple[NetworkDenoiser, Tensor]:
    with torch.no_grad():
        state, _ = GenerationState.prefill(model, guided_prefixes(prefixes, how, model.config.specials))
        return open_diffusion(state, [(seed + i, 0) for i in range(len(prefixes))], grid, how)


def train_predictor(
    model: UnifiedModel,
    prefixes: Sequence[Document],
    grid: Grid,
    how: VisualSampling,
    *,
    iterations: int = 150,
    batch_size: int = 8,
    seed: int = 0,
) -> tuple[AmedPredictor, list[float]]:
    """A predictor for `how.num_steps` steps of the model's diffusion, behind `prefixes` in turn; `how.sampler` does not
    matter. The model's parameters get no gradients. Returns as `train_amed`."""

    def batch(iteration: int) -> tuple[NetworkDenoiser, Tensor]:
        first = iteration * batch_size
        chosen = [prefixes[(first + i) % len(prefixes)] for i in range(batch_size)]
        return _batch(model, chosen, grid, how, seed + first)

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        times = sampling_times(how.trained_diffusion(), how.num_steps)
        return train_amed(batch, times, iterations=iterations, seed=seed, diffusion=how.diffusion)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def distances(
    model: UnifiedModel, prefixes: Sequence[Document], grid: Grid, how: VisualSampling, predictor: AmedPredictor
) -> dict[str, float]:
    """Root mean square distance to the fine solver's pictures, from the same noise: of "euler" and "dpmpp_2m" in as
    many evaluations as "amed" takes in `how.num_steps` steps, of "amed" untrained, and of "amed" with the predictor."""
    denoiser, noise = _batch(model, prefixes, grid, how, _HELD_OUT)

    def draw(sampler: str, steps: int, predictor: AmedPredictor | None = None) -> Tensor:
        return sample(sampler, denoiser, noise, sampling_times(how.trained_diffusion(), steps), predictor)

    fine = draw("heun", _FINE_STEPS)
    steps, evaluations = how.num_steps, 2 * how.num_steps - 1
    drawn = {
        "euler": draw("euler", evaluations),
        "dpmpp_2m": draw("dpmpp_2m", evaluations),
        "amed untrained": draw("amed", steps, AmedPredictor(predictor.times.tolist())),
        "amed": draw("amed", steps, predictor),
    }
    return {name: float((x - fine).square().mean().sqrt()) for name, x in drawn.items()}
