"""The objective `next_latent`: what it shows and asks, how it is packed, drawn, guided, and how likely it says pictures
are; every head against plain recomputation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sampling_cases import visual

from omniloom.models.unified.batch import Segment, collate, visual_segment
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import (
    CouplingConfig,
    DensityConfig,
    DiffusionHeadConfig,
    FourierConfig,
    MixtureConfig,
)
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import sampling_times
from omniloom.models.unified.generation.generate import generate_visual
from omniloom.models.unified.layouts import (
    plain_text,
    prefix_for_text,
    prefix_for_visual,
    text_to_visual,
    visual_to_text,
)
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.likelihoods import picture_nats
from omniloom.models.unified.objectives.objective import UnifiedObjective
from omniloom.models.unified.parameters import num_parameters
from omniloom.models.unified.representations import OBJECTIVES

GRID, C = (1, 2, 3), 3
ROW = OBJECTIVES["next_latent"]
LIKELY: list[DensityConfig] = [
    MixtureConfig(components=4, noise=0.1),
    CouplingConfig(layers=2, width=16, noise=0.1),
    FourierConfig(frequencies=5, width=16, noise=0.1),
]
HEADS = [*LIKELY, DiffusionHeadConfig(layers=2, width=16, noise=0.1)]
every_head = pytest.mark.parametrize("density", HEADS, ids=lambda head: head.head)
likely = pytest.mark.parametrize("density", LIKELY, ids=lambda head: head.head)


def config_for(density: DensityConfig, **fields: Any) -> UnifiedConfig:
    return UnifiedConfig(
        **{"vocab_size": 40, "latent_dim": C, "width": 32, "layers": 2, "heads": 4, "density": density, **fields}
    )


S = config_for(MixtureConfig()).specials


def build(config: UnifiedConfig) -> UnifiedModel:
    torch.manual_seed(0)
    model = UnifiedModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def trained(model: UnifiedModel, **fields: Any) -> UnifiedObjective:
    return UnifiedObjective(model, DiffusionConfig(predict="v"), objectives=("next_latent",), **fields).eval()


def values(seed: int = 0, grid: tuple[int, int, int] = GRID) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(math.prod(grid), C)).astype(np.float32)


def drawing(seed: int = 0, grid: tuple[int, int, int] = GRID) -> list[Segment]:
    return text_to_visual([9, 8, 7], values(seed, grid), grid, S, objective="next_latent")


def log_density(model: UnifiedModel, document: list[Segment]) -> torch.Tensor:
    """Of each position of the last picture of a document, as it stands there, without cache, noise or packing: (n,)."""
    length = sum(segment.length for segment in document)
    batch = collate([[document]], length, model.config)
    part, count = batch.parts["latents"], len(document[-1].values)
    own = {"density": part.index[-count:] - 1, "latents": part.index[:0]}
    times = {"latents": torch.zeros(1, batch.num_segments)}
    with torch.no_grad():
        return model(batch, {"latents": part.values}, times, own, asked={"values": part.values[-count:]})[1]["density"]


@likely
def test_the_loss_is_nats_a_dimension_of_the_noisy_latents(density):
    model = build(config_for(density))
    batch = collate([[drawing(3)], [drawing(4, (2, 2, 2)), plain_text([7] * 4, S)]], 24, model.config)
    objective = trained(model)
    loss, logs = objective(batch, [1, 2])
    noisy = objective.show(batch, [1, 2])["next_latent"].values
    clean = np.concatenate([values(3), values(4, (2, 2, 2))])
    noise = (noisy.numpy() - clean) / 0.1
    assert abs(noise.mean()) < 0.5 and 0.6 < noise.std() < 1.4
    found = [
        log_density(model, [*prefix_for_text([9, 8, 7], S), visual_segment("next_latent", part.numpy(), grid)])
        for part, grid in ((noisy[:6], GRID), (noisy[6:], (2, 2, 2)))
    ]
    expected = -float(torch.cat(found).mean()) / C
    assert logs["visual_loss"].item() == pytest.approx(expected, rel=1e-4)
    assert loss.item() == pytest.approx(logs["text_loss"].item() + 5 * expected, rel=1e-4)


@every_head
def test_a_documents_loss_is_the_same_alone_and_packed(density):
    """Noise is a row's, by place; so what is shown is taken from the packed row."""
    model = build(config_for(density))
    objective = trained(model)
    documents = [visual_to_text(values(1), GRID, [20, 21], S, "next_latent"), drawing(2), drawing(3, (1, 3, 3))]
    packed = collate([documents], 48, model.config)
    shown = objective.show(packed, [5])["next_latent"]
    error = objective.losses["next_latent"].error
    _, predictions = objective.predict(packed, {"next_latent": shown})
    whole = error(predictions["next_latent"], shown, packed)
    parts, at = [], 0
    for document, count in zip(documents[1:], (6, 9)):
        alone = collate([[document]], sum(s.length for s in document), model.config)
        own = objective.show(alone, [5])["next_latent"]
        part = slice(at, at + count)
        own.values, at = shown.values[part], at + count
        own.asked = {name: a[part] for name, a in shown.asked.items()}
        own.extras = {name: a if a is None else a[part] for name, a in shown.extras.items()}
        _, found = objective.predict(alone, {"next_latent": own})
        torch.testing.assert_close(found["next_latent"], predictions["next_latent"][part], atol=1e-5, rtol=1e-4)
        parts.append(error(found["next_latent"], own, alone))
    torch.testing.assert_close(sum(parts), whole, atol=1e-4, rtol=1e-5)


@likely
def test_a_density_does_not_know_later_latents(density):
    model, one = build(config_for(density)), values()
    other = one.copy()
    other[3] += 1
    before, after = (log_density(model, drawing()[:1] + [visual_segment("next_latent", v, GRID)]) for v in (one, other))
    assert torch.equal(before[:3], after[:3]) and not torch.isclose(before[3:], after[3:]).any()


@likely
def test_drawing_with_the_cache_is_the_teacher_forced_density(density):
    """The numbers that a request draws, at the quantiles or in the normals that they are made of, by a forward pass
    over the finished picture."""
    model, grid = build(config_for(density)), (2, 2, 2)
    prefix = prefix_for_text([9, 8], S, values(5), GRID, objective="next_latent")
    drawn = generate_visual(model, [prefix], grid, visual(objective="next_latent"), seeds=[3])[0].flatten(0, 2)
    generator = torch.Generator().manual_seed(3)
    normals, uniforms = (f(8, 1, C, generator=generator)[:, 0] for f in (torch.randn, torch.rand))
    document = [*prefix, visual_segment("next_latent", drawn.numpy(), grid)]
    batch = collate([[document]], sum(s.length for s in document), model.config)
    part = batch.parts["latents"]
    hidden = []
    model.density.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    asked, own = {"values": part.values[-8:]}, {"density": part.index[-8:] - 1, "latents": part.index[:0]}
    with torch.no_grad():
        model(batch, {"latents": part.values}, {"latents": torch.zeros(1, 2)}, own, asked=asked)
        again = model.density.sample(hidden[0], normals, uniforms)
    torch.testing.assert_close(again, drawn, atol=2e-4, rtol=1e-3)


def test_the_diffusion_head_draws_by_eulers_steps():
    model, diffusion = build(config_for(HEADS[3])), DiffusionConfig(predict="v")
    prefix = prefix_for_visual([9, 8], S)
    how = visual(objective="next_latent", diffusion=diffusion, num_steps=5, guidance_scale=2.5, temperature=0.5)
    drawn = generate_visual(model, [prefix], GRID, how, seeds=[3])[0].flatten(0, 2)
    noise = torch.randn(6, C, generator=torch.Generator().manual_seed(3)) * math.sqrt(0.5)
    times = sampling_times(diffusion, 5)
    known: list[np.ndarray] = []
    for place in range(6):
        states = []
        for before in (prefix, prefix_for_visual([], S)):
            shown = np.array([*known, *np.zeros((6 - place, C))], np.float32)
            document = [*before, visual_segment("next_latent", shown, GRID)]
            batch = collate([[document]], sum(s.length for s in document), model.config)
            part = batch.parts["latents"]
            hook = model.density.register_forward_pre_hook(lambda _, given, into=states: into.append(given[0]))
            asked = {"values": torch.zeros(1, 1, C), "times": torch.zeros(1, 1)}
            own = {"density": part.index[place : place + 1] - 1, "latents": part.index[:0]}
            with torch.no_grad():
                model(batch, {"latents": part.values}, {"latents": torch.zeros(1, 1)}, own, asked=asked)
            hook.remove()
        x = noise[place]
        for now, then in zip(times, times[1:]):
            with torch.no_grad():
                v = [model.density(h, x[None, None], torch.tensor([[now]]))[0, 0] for h in states]
            x = x + (then - now) * (v[1] + 2.5 * (v[0] - v[1]))
        torch.testing.assert_close(drawn[place], x, atol=1e-4, rtol=1e-3)
        known.append(x.numpy())


@every_head
def test_guidance_at_1_is_plain_drawing(density):
    model = build(config_for(density))
    how = {"objective": "next_latent", "diffusion": DiffusionConfig(), "num_steps": 3}
    prefixes = [prefix_for_visual([9, 8], S), prefix_for_visual([7], S)]
    plain = generate_visual(model, prefixes, GRID, visual(**how), seeds=[1, 2])
    assert torch.equal(plain, generate_visual(model, prefixes, GRID, visual(guidance_scale=1.0, **how), seeds=[1, 2]))
    guided = generate_visual(model, prefixes, GRID, visual(guidance_scale=3.0, **how), seeds=[1, 2])
    assert not torch.isclose(plain, guided).all()
    # An empty prompt has no condition: both passes agree, and all candidates weigh alike.
    alone = generate_visual(model, prefixes[:1], GRID, visual(guidance_scale=3.0, **how), seeds=[1])
    torch.testing.assert_close(alone[0], guided[0], atol=1e-4, rtol=1e-3)


def test_guidance_draws_from_the_guided_density():
    """Two normals, p_c and p_u: p_c^w / p_u^(w-1) is a normal again, whose mean and variance are known (precisions and
    means by precision add with the exponents). Of 16 candidates the mean comes near it."""
    model = build(config_for(MixtureConfig(components=1)))
    prefix, w = prefix_for_visual([9, 8], S), 1.6
    head, asked = model.density, []
    head.register_forward_pre_hook(lambda _, given: asked.append(given[0]))
    for before in (prefix, prefix_for_visual([], S)):
        log_density(model, [*before, visual_segment("next_latent", values(), GRID)])
    with torch.no_grad():
        (_, mean_c, scale_c), (_, mean_u, scale_u) = (head._parts(hidden[0]) for hidden in asked)
    mean_c, mean_u, scale_c, scale_u = (a[0] for a in (mean_c, mean_u, scale_c, scale_u))
    precision = w / scale_c**2 - (w - 1) / scale_u**2
    assert (precision > 0.3 / scale_c**2).all()
    mean = (w * mean_c / scale_c**2 - (w - 1) * mean_u / scale_u**2) / precision
    count = 3000
    how = visual(objective="next_latent", guidance_scale=w)
    drawn = generate_visual(model, [prefix] * count, (1, 1, 1), how, seeds=range(count)).reshape(count, C)
    plain = generate_visual(model, [prefix] * count, (1, 1, 1), visual(objective="next_latent"), seeds=range(count))
    moved, wanted = drawn.mean(0) - plain.reshape(count, C).mean(0), mean - mean_c
    assert float(wanted.abs().max()) > 0.05  # there is something to see
    torch.testing.assert_close(moved, wanted, atol=0.08, rtol=0.2)
    torch.testing.assert_close(drawn.std(0), precision**-0.5, atol=0.0, rtol=0.15)


@likely
def test_a_pictures_nats_are_those_of_its_noisy_latents(density):
    model = build(config_for(density))
    documents = [drawing(1), drawing(2, (1, 3, 3))]
    objective = trained(model)
    found = picture_nats(objective, "next_latent", documents, [7, 8], batch_size=1)
    for document, seed, nats in zip(documents, (7, 8), found.tolist()):
        batch = collate([[document]], sum(s.length for s in document), model.config)
        noisy = objective.show(batch, [seed])["next_latent"].values
        picture = visual_segment("next_latent", noisy.numpy(), document[1].grid)
        assert nats == pytest.approx(-float(log_density(model, [document[0], picture]).sum()), rel=1e-4)
    with pytest.raises(ValueError, match="latent_diffusion: its predictions are no distributions"):
        diffusing = UnifiedModel(config_for(MixtureConfig()).__class__(vocab_size=40, latent_dim=C, width=32, heads=4))
        picture_nats(UnifiedObjective(diffusing, DiffusionConfig()), "latent_diffusion", [], [])


@pytest.mark.parametrize("formulation", ["flow", "vp", "edm"])
def test_the_diffusion_heads_bound_is_the_entropy_where_it_knows_the_truth(formulation, monkeypatch):
    """Latents that are independent normals of a known deviation: the best denoiser is known, and with it the bound is
    their cross entropy under the noise of the head."""
    std, noise = 0.7, 0.1
    density = DiffusionHeadConfig(layers=1, width=8, noise=noise)
    model = build(config_for(density))
    diffusion = DiffusionConfig(formulation, predict="x")
    objective = UnifiedObjective(model, diffusion, objectives=("next_latent",)).eval()
    variance = std**2 + noise**2
    row = objective.losses["next_latent"]

    def best(hidden: torch.Tensor, values: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        from omniloom.models.unified.diffusion.formulations import formulation as of

        t, table = seen["time"], of(diffusion)
        a, b = table.scales(t)
        return a * variance / (a * a * variance + b * b) * values / table.input_scale(t)

    seen: dict[str, torch.Tensor] = {}
    shown_by = type(row).show_bound

    def show_bound(self, *given):
        shown = shown_by(self, *given)
        seen["time"] = shown.extras["time"]
        return shown

    monkeypatch.setattr(type(row), "show_bound", show_bound)
    monkeypatch.setattr(model.density, "forward", best)
    grid = (1, 16, 16)
    pictures = [np.random.default_rng(i).normal(0, std, (256, C)).astype(np.float32) for i in range(8)]
    documents = [text_to_visual([9], p, grid, S, objective="next_latent") for p in pictures]
    found = float(picture_nats(objective, "next_latent", documents, list(range(8))).sum()) / (8 * 256 * C)
    spread = float(np.mean(np.square(pictures))) + noise**2
    truth = 0.5 * (math.log(2 * math.pi * variance) + spread / variance)
    assert found == pytest.approx(truth, abs=0.03)


@every_head
def test_parameters_and_what_takes_part(density):
    config = config_for(density)
    model = build(config).train()
    assert num_parameters(config) == sum(p.numel() for p in model.parameters())
    for documents in ([drawing()], [visual_to_text(values(), GRID, [9], S, "next_latent")], []):
        objective = trained(model).train()
        objective.zero_grad()
        loss = objective(collate([documents], 24, config), 0)[0]
        loss.backward()
        assert torch.isfinite(loss)
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())


def test_noise_of_a_diffusion_beside_it_leaves_its_time_at_0():
    config = config_for(LIKELY[0])
    objective = UnifiedObjective(build(config), DiffusionConfig(), objectives=("latent_diffusion", "next_latent"))
    diffused = text_to_visual([9, 8, 7], values(2), GRID, S)
    batch = collate([[diffused, drawing(1)]], 32, config)
    both = objective.show(batch, [3])
    seen = {}
    objective.model.register_forward_pre_hook(lambda _, given: seen.update(times=given[2], values=given[1]))
    objective.predict(batch, both)
    assert seen["times"]["latents"].tolist() == [[pytest.approx(both["latent_diffusion"].times[0, 0].item()), 0.0]]
    torch.testing.assert_close(seen["values"]["latents"][6:], both["next_latent"].values)


def test_segments_of_latents_are_a_diffusions_unless_they_say():
    assert Segment("visual", latents=values(), grid=GRID).objective == "latent_diffusion"
    assert visual_segment("next_latent", values(), GRID).objective == "next_latent"
    with pytest.raises(ValueError, match="next_latent has no time, got 0.5"):
        visual_segment("next_latent", values(), GRID, loss=False, max_time=0.5)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="latent_patchifier: expected linear or bottleneck with next_latent"):
        config_for(MixtureConfig(), latent_patchifier="unet")
    with pytest.raises(ValueError, match="the model has no density head, of the objectives next_latent asks it"):
        UnifiedObjective(
            UnifiedModel(UnifiedConfig(vocab_size=40, latent_dim=C, width=32, heads=4)),
            DiffusionConfig(),
            objectives=("next_latent",),
        )
    with pytest.raises(ValueError, match="the model has a density head, of the objectives none asks it"):
        UnifiedObjective(UnifiedModel(config_for(MixtureConfig())), DiffusionConfig())
    model = build(config_for(FourierConfig(frequencies=2, width=8)))
    with pytest.raises(ValueError, match="temperature: the head fourier draws at 1 alone, got 0.5"):
        generate_visual(model, [prefix_for_visual([], S)], GRID, visual(objective="next_latent", temperature=0.5))
    plain = UnifiedModel(UnifiedConfig(vocab_size=40, latent_dim=C, width=32, heads=4))
    with pytest.raises(ValueError, match="objective: next_latent needs a model with a density head"):
        generate_visual(plain, [prefix_for_visual([], S)], GRID, visual(objective="next_latent"))
    model = build(config_for(DiffusionHeadConfig(width=8)))
    with pytest.raises(ValueError, match="diffusion: next_latent needs the config that it was trained with"):
        generate_visual(model, [prefix_for_visual([], S)], GRID, visual(objective="next_latent"))
