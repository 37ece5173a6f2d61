"""AMED's predictor for a network: gradients through the cache, and training that leaves the network alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sampling_cases import visual

from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.amed_model import distances, train_predictor
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.generation.cache import GenerationState
from omniloom.models.unified.generation.draw import open_diffusion
from omniloom.models.unified.generation.generate import guided_prefixes
from omniloom.models.unified.layouts import prefix_for_text, prefix_for_visual
from omniloom.models.unified.model import UnifiedModel

GRID = (1, 2, 2)
CONFIG = UnifiedConfig(vocab_size=40, latent_dim=3, width=32, layers=2, heads=4, kv_heads=2, hidden=48)
S = CONFIG.specials


def build() -> UnifiedModel:
    torch.manual_seed(0)
    model = UnifiedModel(CONFIG).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.25)
    return model


def prefixes() -> list:
    picture = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    return [prefix_for_visual([7, 8, 9], S), prefix_for_text([20], S, picture, GRID), prefix_for_visual([30], S)]


@pytest.mark.parametrize("requests", [prefixes(), prefixes()[:1]], ids=["uneven", "one"])
@pytest.mark.parametrize("formulation", ["flow", "edm"])
def test_gradients_through_the_cache_are_those_of_differences(requests: list, formulation: str) -> None:
    model, config = build().double().requires_grad_(False), DiffusionConfig(formulation)
    how = visual(diffusion=config, guidance_scale=2.0, image_guidance_scale=1.5)
    with torch.no_grad():
        state, _ = GenerationState.prefill(model, guided_prefixes(requests, how, S))
        denoiser, noise = open_diffusion(state, [(i, 0) for i in range(len(requests))], GRID, how)
    direction = torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    lengths = list(state.lengths)

    def value(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return (denoiser.velocity(x, time) * direction).sum()

    x, time = noise.clone().requires_grad_(), torch.tensor(0.6, requires_grad=True)
    first = denoiser.velocity(x, time)  # later feeds must not disturb its graph
    value(x, time).backward()
    of_x, of_time = x.grad.clone(), time.grad.clone()
    x.grad = time.grad = None
    (first * direction).sum().backward()
    torch.testing.assert_close(x.grad, of_x)
    assert state.lengths == lengths
    short, step = 1e-4, 1e-3  # the time's fastest wave turns by 1000 t
    with torch.no_grad():
        by_time = (value(noise, time + short) - value(noise, time - short)) / (2 * short)
        by_x = (value(noise + step * direction, time) - value(noise - step * direction, time)) / (2 * step)
    torch.testing.assert_close(of_time.double(), by_time.double(), rtol=0.03, atol=0.03)
    torch.testing.assert_close((of_x * direction).sum().double(), by_x.double(), rtol=0.03, atol=0.03)


def test_batches_go_through_the_prefixes_in_turn() -> None:
    """Eight of them where nothing is said, each with the noise of its own number."""
    model, how = build(), visual(diffusion=DiffusionConfig(), num_steps=2, guidance_scale=2.0)
    _, usual = train_predictor(model, prefixes(), GRID, how, iterations=2)
    _, eight = train_predictor(model, prefixes(), GRID, how, iterations=2, batch_size=8)
    assert usual == eight
    first, second, third = prefixes()

    def losses(*requests: list, seed: int = 5) -> list[float]:
        return train_predictor(model, requests, GRID, how, iterations=2, batch_size=2, seed=seed)[1]

    found = losses(first, second, third)
    assert found == losses(first, second, third, first)
    for others in (
        losses(first, first, third, first),
        losses(first, second, third, third),
        losses(first, second, second, first),
        losses(first, second, third, first, seed=6),
    ):
        assert all(a != b for a, b in zip(found, others)) or found[1] != others[1]


def test_a_trained_predictor_comes_nearer_to_the_fine_solver() -> None:
    model, how = build(), visual(diffusion=DiffusionConfig(), num_steps=3, guidance_scale=2.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    predictor, losses = train_predictor(model, prefixes(), GRID, how, iterations=25, batch_size=4)
    assert len(losses) == 25 and sum(losses[-5:]) < sum(losses[:5])
    found = distances(model, prefixes(), GRID, how, predictor)
    assert set(found) == {"euler", "dpmpp_2m", "amed untrained", "amed"}
    assert found["amed"] < found["amed untrained"]
    assert predictor.diffusion == how.diffusion and len(predictor.times) == 4
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    again, _ = train_predictor(model, prefixes(), GRID, how, iterations=25, batch_size=4)
    assert all(torch.equal(a, b) for a, b in zip(predictor.parameters(), again.parameters()))
