"""The density heads by themselves, against closed forms, numerical integration and scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from omniloom.models.unified.density.base import MIN_SCALE, LikelihoodHead
from omniloom.models.unified.density.build import make_head
from omniloom.models.unified.density.config import (
    HEADS,
    CouplingConfig,
    DensityConfig,
    DiffusionHeadConfig,
    FourierConfig,
    HeadShape,
    MixtureConfig,
    read_density,
)

WIDTH = 12
LIKELY = [
    MixtureConfig(components=5),
    CouplingConfig(layers=3, width=16),
    CouplingConfig(coupling="additive", layers=3, width=16),
    FourierConfig(frequencies=6, width=16),
]


def named(value: Any) -> str | None:
    if not isinstance(value, DensityConfig):
        return None
    return value.head + (f"-{value.coupling}" if isinstance(value, CouplingConfig) else "")


likely = pytest.mark.parametrize("config", LIKELY, ids=named)


def build(config: DensityConfig, channels: int, seed: int = 0) -> Any:
    """A head with weights that make its density depend on all that it sees."""
    torch.manual_seed(seed)
    head = make_head(config, HeadShape(WIDTH, channels, 8), 1e-6)
    with torch.no_grad():
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        head.norm.weight.fill_(1.0)
    return head.double()


def hidden(seed: int = 1, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def density(head: LikelihoodHead, state: torch.Tensor, points: np.ndarray) -> np.ndarray:
    return head.log_prob(state, torch.from_numpy(points)).exp().numpy()


@likely
@pytest.mark.parametrize("seed", [0, 1])
def test_likelihoods_integrate_to_1(config, seed):
    """By Simpson's rule, in coordinates that take in the whole line or plane."""
    head, state = build(config, 1, seed), hidden(seed)
    line = np.sinh(np.linspace(-12, 12, 20_001))  # fine near 0, out to 80,000
    on_line = density(head, state, line[:, None])
    assert integrate.simpson(on_line, x=line) == pytest.approx(1, abs=1e-3)

    head, state = build(config, 2, seed), hidden(seed)
    side = np.sinh(np.linspace(-6.5, 6.5, 401))
    plane = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
    rows = np.array([integrate.simpson(density(head, state, row), x=side) for row in plane])
    assert integrate.simpson(rows, x=side) == pytest.approx(1, abs=1e-3)


@likely
def test_samples_are_of_the_density(config):
    """Kolmogorov-Smirnov: of the first channel against its distribution function, which is integrated, and of the
    second given the first by the same."""
    head, state = build(config, 2), hidden()
    generator = torch.Generator().manual_seed(5)
    normals, uniforms = (f((1500, 2), generator=generator, dtype=torch.float64) for f in (torch.randn, torch.rand))
    with torch.no_grad():
        drawn = head.sample(state, normals, uniforms).numpy()
    side = np.sinh(np.linspace(-6, 6, 501))
    first = np.array(
        [integrate.simpson(density(head, state, np.stack([np.full_like(side, x), side], -1)), x=side) for x in side]
    )
    below = integrate.cumulative_simpson(first, x=side, initial=0)
    assert stats.kstest(np.interp(drawn[:, 0], side, below), "uniform").pvalue > 0.01
    places = []
    for x, y in drawn[:250]:
        along = density(head, state, np.stack([np.full_like(side, x), side], -1))
        below = integrate.cumulative_simpson(along, x=side, initial=0)
        places.append(np.interp(y, side, below) / below[-1])
    assert stats.kstest(places, "uniform").pvalue > 0.01


@likely
def test_one_hidden_state_may_be_asked_of_several_values(config):
    head, states = build(config, 3), hidden(1, 4)
    values = torch.randn(4, 7, 3, dtype=torch.float64)
    together = head.log_prob(states[:, None], values)
    alone = torch.stack([torch.stack([head.log_prob(h, v) for v in row]) for h, row in zip(states, values)])
    torch.testing.assert_close(together, alone)
    normals, uniforms = torch.randn(4, 7, 3, dtype=torch.float64), torch.rand(4, 7, 3, dtype=torch.float64)
    drawn = head.sample(states[:, None], normals, uniforms)
    torch.testing.assert_close(drawn[2, 5], head.sample(states[2], normals[2, 5], uniforms[2, 5]))


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("channels", [1, 2, 5, 8])
def test_the_flow_inverts(coupling, channels):
    head = build(CouplingConfig(coupling=coupling, layers=4, width=16), channels).float()
    states = hidden(1, 50).float()
    x = torch.randn(50, channels, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        e, log_determinant = head.normalized(states, x)
        assert float((head.generated(states, e) - x).abs().max()) < 1e-5
        assert float((head.normalized(states, head.generated(states, x))[0] - x).abs().max()) < 1e-5
    head, states, x = head.double(), states.double(), x.double()
    for place in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v, p=place: head.normalized(states[p], v)[0], x[place])
        assert float(jacobian.det().abs().log()) == pytest.approx(head.normalized(states, x)[1][place].item(), abs=1e-9)


def test_the_additive_flow_keeps_volume_but_for_its_scale():
    head = build(CouplingConfig(coupling="additive", layers=4, width=16), 4)
    states = hidden(1, 6)
    _, scale = head._affine(torch.nn.functional.silu(head.conditioned(states)))
    found = [head.normalized(states, torch.randn(6, 4, dtype=torch.float64))[1] for _ in range(2)]
    torch.testing.assert_close(found[0], -scale.log().sum(-1))
    torch.testing.assert_close(found[0], found[1])


WEIGHTS, MEANS, SCALES = (0.5, 0.3, 0.2), ((-1.5, 0.5), (1.0, 1.0), (0.5, -1.5)), ((0.3, 0.6), (0.5, 0.2), (0.4, 0.4))


def known(count: int, seed: int) -> tuple[np.ndarray, float]:
    """Draws of a known mixture in two dimensions, and the mean of its own negative log-density over them, nats."""
    rng = np.random.default_rng(seed)
    which = rng.choice(3, count, p=WEIGHTS)
    x = np.array(MEANS)[which] + np.array(SCALES)[which] * rng.standard_normal((count, 2))
    parts = [w * stats.multivariate_normal(m, np.diag(np.square(s))).pdf(x) for w, m, s in zip(WEIGHTS, MEANS, SCALES)]
    return x, float(-np.log(np.sum(parts, axis=0)).mean())


def test_a_known_mixture_is_fitted():
    """Within 0.02 nats of what the truth itself says of the same fresh draws."""
    torch.manual_seed(0)
    head = make_head(MixtureConfig(components=8), HeadShape(WIDTH, 2, 8), 1e-6)
    head.reset()
    state, train = torch.ones(WIDTH), torch.from_numpy(known(20_000, 0)[0]).float()
    fitted(head, state, train, 400, 0.03)
    fresh, truth = known(20_000, 1)
    with torch.no_grad():
        found = float(-head.log_prob(state, torch.from_numpy(fresh).float()).mean())
    assert abs(found - truth) < 0.02


def fitted(head: Any, state: torch.Tensor, train: torch.Tensor, steps: int, lr: float) -> None:
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        part = train[torch.randint(len(train), (500,), generator=torch.Generator().manual_seed(step))]
        optimizer.zero_grad()
        (-head.log_prob(state, part).mean()).backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    "config", [FourierConfig(frequencies=12, width=32), CouplingConfig(layers=6, width=32)], ids=named
)
def test_the_others_learn_how_its_channels_depend_on_each_other(config):
    """Independent channels, each with its own marginal in full, would be away by their mutual information."""
    torch.manual_seed(0)
    head = make_head(config, HeadShape(WIDTH, 2, 8), 1e-6)
    state, train = torch.ones(WIDTH), torch.from_numpy(known(20_000, 0)[0]).float()
    fitted(head, state, train, 250, 0.01)
    fresh, truth = known(20_000, 1)
    marginals = np.array(
        [sum(w * stats.norm(m[c], s[c]).pdf(fresh[:, c]) for w, m, s in zip(WEIGHTS, MEANS, SCALES)) for c in (0, 1)]
    )
    independent = -np.log(marginals).sum(0).mean() - truth
    with torch.no_grad():
        found = float(-head.log_prob(state, torch.from_numpy(fresh).float()).mean()) - truth
    assert independent > 0.3 and -0.02 < found < independent / 2


def test_the_series_is_the_papers():
    """Coefficients c_n of the roots by their sum, as arXiv 2402.15345 has them, and the distribution function by their
    integral, against what the head computes."""
    head, state = build(FourierConfig(frequencies=4, width=16), 1), hidden()
    with torch.no_grad():
        series = head._series(head.conditioned(state) + head.places(torch.tensor(0)))
    real, imaginary, shift, scale = (a.numpy() for a in series)
    a, n = real + 1j * imaginary, np.arange(-4, 5)
    c = np.array([sum(a[k + m] * np.conj(a[k]) for k in range(5) if 0 <= k + m < 5) for m in n])
    x = np.linspace(-4, 4, 41)
    z = np.tanh((x - shift) / scale)
    on_unit = (c * np.exp(1j * np.pi * n * z[:, None])).sum(-1).real / (2 * c[4].real)
    mixed = (1 - 1e-4) * on_unit + 1e-4 / 2
    np.testing.assert_allclose(density(head, state, x[:, None]), mixed * (1 - z**2) / scale, rtol=1e-9)


def test_drawing_by_the_mixtures_temperature():
    head, state = build(MixtureConfig(components=3), 2), hidden()
    normals, uniforms = torch.randn(4000, 2, dtype=torch.float64), torch.rand(4000, 2, dtype=torch.float64)
    with torch.no_grad():
        log_weights, means, scales = head._parts(state)
        cold, half = (head.sample(state, normals, uniforms, t) for t in (0.0, 0.25))
    assert {tuple(row) for row in cold.tolist()} == {tuple(row) for row in means.tolist()}
    for k in range(3):
        own = (cold == means[k]).all(-1)
        assert abs(float(own.double().mean()) - float(log_weights[k].exp())) < 0.03
        torch.testing.assert_close((half - cold)[own].std(0), 0.5 * scales[k], rtol=0.15, atol=0)
    fourier = build(FourierConfig(frequencies=2, width=8), 2)
    with pytest.raises(ValueError, match="temperature: the head fourier draws at 1 alone, got 0.5"):
        fourier.sample(state, normals, uniforms, 0.5)


@likely
def test_densities_have_a_ceiling(config):
    """Fitted to one point, where a density without floors would grow for ever."""
    torch.manual_seed(0)
    head, state = make_head(config, HeadShape(WIDTH, 2, 8), 1e-6), torch.ones(WIDTH)
    head.reset()
    point = torch.tensor([[0.3, -0.2]]).repeat(50, 1)
    fitted(head, state, point, 120, 0.02)
    with torch.no_grad():
        found = float(head.log_prob(state, point[0]))
    narrowest = 1 / (MIN_SCALE * math.sqrt(2 * math.pi))
    more = 1.0 * config.layers if isinstance(config, CouplingConfig) and config.coupling == "affine" else 0.0
    if isinstance(config, FourierConfig):
        # The series' height is at most that of N + 1 roots which all agree.
        narrowest = (config.frequencies + 1) / 2 / MIN_SCALE
    assert 3 < found <= 2 * math.log(narrowest) + more + 1e-3


@pytest.mark.parametrize("config", [*LIKELY, DiffusionHeadConfig(layers=2, width=16)], ids=named)
@pytest.mark.parametrize("channels", [1, 5])
def test_parameters_in_closed_form(config, channels):
    shape = HeadShape(WIDTH, channels, 8)
    assert config.parameters(shape) == sum(p.numel() for p in make_head(config, shape, 1e-6).parameters())


def test_likelihoods_are_float32_under_an_autocast():
    head = make_head(MixtureConfig(components=4), HeadShape(WIDTH, 8, 8), 1e-6)
    states, values = torch.randn(3, WIDTH), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(states, values), head.log_prob(states, values)) is False
        found = head(states, values)
    assert torch.equal(found, head.log_prob(states, values))


def test_configs_are_read_and_refused():
    for name, config in HEADS.items():
        assert read_density({"head": name, "noise": 0.0}, "here") == config(noise=0.0)
    assert read_density({}, "here") == MixtureConfig()
    for values, message in (
        ({"head": "nope"}, "here.head: expected one of mixture, flow, fourier, diffusion, got 'nope'"),
        ({"head": "flow", "components": 3}, "here.components: unknown field; flow takes"),
        ({"components": 0}, "MixtureConfig.components: expected a positive integer, got 0"),
        ({"noise": 1.5}, "MixtureConfig.noise: expected a number from 0 to below 1, got 1.5"),
        ({"head": "flow", "coupling": "x"}, "CouplingConfig.coupling: expected affine or additive"),
    ):
        with pytest.raises(ValueError, match=message):
            read_density(values, "here")
