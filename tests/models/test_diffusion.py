"""Formulations of diffusion against closed forms: Gaussians, published coefficients, laws of times."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from gaussians import Gaussian
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from omniloom.models.unified.diffusion.config import FORMULATIONS, KINDS, PREDICTIONS, WEIGHTS, DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import (
    NetworkDenoiser,
    corrupt,
    denoised,
    residual,
    sample_times,
    sampling_times,
    velocity,
    warn_wide_patches,
)
from omniloom.models.unified.diffusion.formulations import formulation
from omniloom.pipelines.fingerprint import digest

# Path times inside both floors: sigma from 0.1 to 8.
TIMES = {"flow": (0.1, 0.5, 0.88), "vp": (0.1, 0.5, 0.88), "ve": (0.1, 1.0, 8.0), "edm": (0.1, 1.0, 8.0)}
EVERY = [(f, p) for f in FORMULATIONS for p in PREDICTIONS]
D = 0.5


def edm_frame(config: DiffusionConfig, t: float) -> tuple[float, float, float, float]:
    """(c_skip, c_out, c_in, c_noise) at a path time t of finite sigma, as the table has them."""
    row = formulation(config)
    a, b = row.scales(t)
    skip, out = row.v_to_data(t)
    skip, out = {"x": (0.0, 1.0), "noise": (1.0, -b / a), "v": (skip * a, out)}[config.predict]
    return skip, out, row.input_scale(t) * a, row.c_noise(t)


def sigma_of(name: str, t: float) -> float:
    return {"flow": t / (1 - t) if t < 1 else math.inf, "vp": math.tan(math.pi * t / 2)}.get(name, t)


def target(name: str, predict: str, x: torch.Tensor, e: torch.Tensor, t: float) -> torch.Tensor:
    """What a network is asked for, as its papers write it."""
    if predict != "v":
        return {"x": x, "noise": e}[predict]
    alpha, s = math.pi * t / 2, sigma_of(name, t)
    return {
        "flow": e - x,
        "vp": math.cos(alpha) * e - math.sin(alpha) * x,
        "ve": e,
        "edm": (x - D**2 / (s**2 + D**2) * (x + s * e)) * math.sqrt(s**2 + D**2) / (s * D),
    }[name]


def weight(name: str, kind: str, t: float, gamma: float) -> float:
    """w of w |D - x|^2 at sigma."""
    s = sigma_of(name, t)
    edm = (s**2 + D**2) / (s * D) ** 2
    v = {"flow": 1 / t**2, "vp": 1 + 1 / s**2, "ve": 1 / s**2, "edm": edm}[name]
    return {"x": 1.0, "noise": 1 / s**2, "v": v, "edm": edm, "min_snr": min(1 / s**2, gamma)}[kind]


def draw(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(5, 3, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(("name", "predict"), EVERY)
def test_the_exact_network_gives_the_exact_denoiser_and_velocity(name: str, predict: str) -> None:
    config = DiffusionConfig(name, predict, data_std=D)
    exact = Gaussian(config)
    for t in TIMES[name]:
        x_t = 2 * draw()[0]
        seen = []

        def network(x: torch.Tensor, c_noise: float, x_t=x_t, t=t, seen=seen) -> torch.Tensor:
            seen.append((x, c_noise))
            return target(name, predict, *exact.posterior(x_t, t), t)

        model = NetworkDenoiser(config, network)
        torch.testing.assert_close(model.denoised(x_t, t), exact.denoised(x_t, t))
        torch.testing.assert_close(model.velocity(x_t, t), exact.velocity(x_t, t))
        # The velocity is the slope of the known solution.
        h = 1e-5 * t
        ends = [exact.solution(x_t, t, t + side * h) for side in (1, -1)]
        torch.testing.assert_close(exact.velocity(x_t, t), (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-6)
        # And the same in EDM's frame.
        c_skip, c_out, c_in, c_noise = edm_frame(config, t)
        hat = x_t / exact.scales(t)[0]
        torch.testing.assert_close(seen[0][0], c_in * hat)
        assert seen[0][1] == c_noise
        torch.testing.assert_close(c_skip * hat + c_out * network(x_t, t), exact.denoised(x_t, t))


@pytest.mark.parametrize(("name", "predict"), EVERY)
def test_published_coefficients(name: str, predict: str) -> None:
    for t in TIMES[name]:
        s = sigma_of(name, t)
        c_skip, c_out, c_in, _ = edm_frame(DiffusionConfig(name, predict, data_std=D), t)
        root = math.sqrt(1 + s**2)
        total = math.sqrt(s**2 + D**2)
        v = {
            "flow": (1 / (1 + s), -s / (1 + s)),
            "vp": (1 / root**2, -s / root),
            "ve": (1, -s),
            "edm": (D**2 / total**2, s * D / total),
        }[name]
        expected = {"x": (0, 1), "noise": (1, -s), "v": v}[predict]
        inside = {"flow": 1 / (1 + s), "vp": 1 / root, "ve": 1, "edm": 1 / total}[name]
        np.testing.assert_allclose((c_skip, c_out, c_in), (*expected, inside), rtol=1e-12)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_what_the_network_sees_as_time(name: str) -> None:
    config = DiffusionConfig(name, shift=3.0)
    row = formulation(config)
    sigmas = np.array(config.shift * np.geomspace(config.sigma_min, config.sigma_max, 7))
    times = row.time(torch.tensor(np.log(sigmas)))
    told = row.c_noise(times).numpy()
    assert (np.diff(told) > 0).all() and told[0] >= 0 and told[-1] <= 1
    # 0 is what clean context has.
    assert row.c_noise(torch.zeros(1)).item() == 0 == row.c_noise(0.0)
    assert row.c_noise(float(times[3])) == pytest.approx(told[3])
    if name in ("ve", "edm"):
        slope, offset = np.polyfit(np.log(sigmas) / 4, told, 1)
        np.testing.assert_allclose(slope * np.log(sigmas) / 4 + offset, np.linspace(0, 1, 7), atol=1e-9)
    else:
        np.testing.assert_allclose([sigma_of(name, t) for t in told], sigmas, rtol=1e-9)


@pytest.mark.parametrize(("name", "predict"), EVERY)
def test_losses_are_weighted_errors_of_the_denoiser(name: str, predict: str) -> None:
    x, e = draw(1)
    output = x + 0.3 * e
    for kind, t, gamma in itertools.product(WEIGHTS, TIMES[name], (5.0, 0.3)):
        config = DiffusionConfig(name, predict, weight=kind, snr_gamma=gamma, data_std=D)
        x_t = corrupt(config, x, e, t)
        error = (denoised(config, output, x_t, t) - x).square()
        for times in (t, torch.full((5, 1), t, dtype=torch.float64)):
            loss = residual(config, output, x, e, times).square()
            torch.testing.assert_close(loss, weight(name, kind, t, gamma) * error)
        torch.testing.assert_close(corrupt(config, x, e, t), corrupt(config, x, e, times))


@pytest.mark.parametrize(("name", "predict"), EVERY)
def test_plain_errors_of_what_is_predicted(name: str, predict: str) -> None:
    """weight == predict is |F - target|^2, at every time of the path, its ends included."""
    x, e = draw(2)
    config = DiffusionConfig(name, predict, weight=predict, data_std=D)
    for t in (*TIMES[name], 1e-9, {"flow": 1.0, "vp": 1.0}.get(name, 80.0)):
        expected = (e - target(name, predict, x, e, t)).square()
        torch.testing.assert_close(residual(config, e, x, e, t).square(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "predict"), EVERY)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_minimiser_is_the_exact_network(name: str, predict: str, kind: str) -> None:
    """On N(m, s^2) the best F is linear in x_t; Gauss-Hermite quadrature makes its mean gradient exactly 0."""
    m, s = 0.8, 0.6
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    grid = np.array(list(itertools.product(nodes, nodes)))
    share = torch.tensor([p * q for p, q in itertools.product(weights, weights)]) / (2 * math.pi)
    x, e = torch.tensor(m + s * grid[:, 0]), torch.tensor(grid[:, 1])
    config = DiffusionConfig(name, predict, weight=kind, data_std=D)
    for t in TIMES[name]:
        a, b = formulation(config).scales(t)
        x_t = a * x + b * e
        along = (x_t - a * m) / (a * a * s * s + b * b)
        best = target(name, predict, m + a * s * s * along, b * along, t)

        def loss(scale: torch.Tensor, offset: torch.Tensor, best=best, t=t) -> torch.Tensor:
            return (share * residual(config, scale * best + offset, x, e, t).square()).sum()

        scale = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        least = loss(*scale)
        (gradient,) = torch.autograd.grad(least, scale)
        assert gradient.abs().max() < 1e-9 * max(1.0, least.item())
        assert loss(torch.tensor(1.1), torch.tensor(0.1)) > least


def test_inputs_and_targets_have_variance_one_behind_edms_preconditioning() -> None:
    """arXiv 2206.00364, appendix B.6: at every noise level, for data of deviation data_std."""
    g = torch.Generator().manual_seed(0)
    x, e = D * torch.randn(200_000, generator=g), torch.randn(200_000, generator=g)
    config = DiffusionConfig("edm", data_std=D)
    for t in (0.01, 0.5, 20.0):
        row = formulation(config)
        assert (row.input_scale(t) * corrupt(config, x, e, t)).std().item() == pytest.approx(1, abs=0.01)
        assert row.v(x, e, t).std().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_floors_bound_what_divides(name: str) -> None:
    x, e = draw(3)
    end = {"flow": 1.0, "vp": 1.0}.get(name, 80.0)
    for predict, kind in itertools.product(PREDICTIONS, WEIGHTS):
        config = DiffusionConfig(name, predict, weight=kind)
        for t in (1e-7, end):
            bound = 1e5 * max(1.0, end) ** 2
            assert residual(config, x + 1, x, e, torch.tensor(t)).square().max() < bound
            x_t = corrupt(config, x, e, t)
            assert velocity(config, x, x_t, t).abs().max() < bound
            assert denoised(config, x, x_t, t).abs().max() < bound
    assert residual(DiffusionConfig(predict="x"), x + 1, x, e, 1e-4).square().max() == pytest.approx(400)


def distance(values: torch.Tensor, cdf) -> float:
    """Kolmogorov and Smirnov's, of a sample from a law."""
    values = np.sort(values.double().numpy().ravel())
    steps = np.arange(len(values) + 1) / len(values)
    law = np.array([cdf(v) for v in values])
    return max(np.abs(law - steps[1:]).max(), np.abs(law - steps[:-1]).max())


def normal_cdf(value: float, mean: float, std: float) -> float:
    return 0.5 * (1 + math.erf((value - mean) / (std * math.sqrt(2))))


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize("law", ["uniform", "logit_normal", "lognormal"])
@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_times_follow_their_law(name: str, law: str, shift: float) -> None:
    config = DiffusionConfig(name, time=law, time_mean=-0.8, time_std=0.7, shift=shift)
    times = sample_times(config, (100, 100), torch.Generator().manual_seed(0))
    assert times.shape == (100, 100) and times.dtype == torch.float32

    def cdf(t: float) -> float:
        sigma = sigma_of(name, t) / shift
        if law == "lognormal":
            return normal_cdf(math.log(sigma), -0.8, 0.7)
        if name in ("ve", "edm"):
            unit = math.log(sigma / config.sigma_min) / math.log(config.sigma_max / config.sigma_min)
        else:
            unit = sigma / (1 + sigma) if name == "flow" else 2 / math.pi * math.atan(sigma)
        return unit if law == "uniform" else normal_cdf(math.log(unit / (1 - unit)), -0.8, 0.7)

    assert distance(times, cdf) < 1.63 / math.sqrt(times.numel())  # 1% critical value


def test_lognormal_sigma_is_logit_normal_time_on_flow() -> None:
    pair = [
        sample_times(DiffusionConfig(time=law, time_mean=0.3, time_std=0.9), (9,), torch.Generator().manual_seed(1))
        for law in ("logit_normal", "lognormal")
    ]
    assert torch.equal(*pair)


@given(st.sampled_from(FORMULATIONS), st.floats(0.1, 10), st.floats(-4, 4))
def test_shift_divides_the_signal_to_noise_ratio_by_k_squared(name: str, k: float, log_sigma: float) -> None:
    row = formulation(DiffusionConfig(name, shift=k))
    t = row.time(torch.tensor(log_sigma, dtype=torch.float64))
    a, b = (float(scale) for scale in row.scales(row.shift(t)))
    assert 2 * math.log(a / b) == pytest.approx(-2 * log_sigma - 2 * math.log(k), abs=1e-9)


def test_shifted_cosine_is_simple_diffusions() -> None:
    """logSNR = -2 log tan(pi t / 2) + 2 log(64 / d) (arXiv 2301.11093, eq. 3)."""
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    row = formulation(DiffusionConfig("vp", shift=256 / 64))
    a, b = row.scales(row.shift(t))
    torch.testing.assert_close(2 * (a / b).log(), -2 * (math.pi * t / 2).tan().log() + 2 * math.log(64 / 256))


def test_sampling_grids() -> None:
    assert sampling_times(DiffusionConfig(), 4) == [1, 0.75, 0.5, 0.25, 0]
    assert sampling_times(DiffusionConfig("vp"), 2) == [1, 0.5, 0]
    n = 6
    even = {
        "edm": [(80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(n)],
        "logsnr": np.geomspace(80, 0.002, n).tolist(),
        "time": np.linspace(80, 0, n + 1)[:-1].tolist(),
    }
    for name, (grid, sigmas), shift in itertools.product(FORMULATIONS, even.items(), (1.0, 2.0)):
        times = sampling_times(DiffusionConfig(name, sampling_grid=grid, shift=shift), n)
        assert len(times) == n + 1 and times[-1] == 0 and (np.diff(times) < 0).all()
        if grid == "time" and name in ("flow", "vp"):
            assert times[0] == pytest.approx(1)
        else:
            measured = [sigma_of(name, t) / shift for t in times[:-1]]
            np.testing.assert_allclose(measured, sigmas, rtol=1e-6)
    assert sampling_times(DiffusionConfig("edm"), 1) == pytest.approx([80, 0])
    with pytest.raises(ValueError, match="num_steps"):
        sampling_times(DiffusionConfig(), 0)


def test_usual_laws_are_filled_in_and_stay() -> None:
    flow, edm = DiffusionConfig(), DiffusionConfig("edm", data_std=0.5)
    assert (flow.time, flow.time_mean, flow.time_std, flow.sampling_grid) == ("logit_normal", 0, 1, "time")
    assert (edm.time, edm.time_mean, edm.time_std, edm.sampling_grid) == ("lognormal", -1.2, 1.2, "edm")
    assert DiffusionConfig("edm", data_std=1.0).time_mean == pytest.approx(-1.2 + math.log(2))
    assert DiffusionConfig("edm", time="logit_normal").time_std == 1
    assert DiffusionConfig(**dataclasses.asdict(edm)) == edm


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("formulation", "ddpm"),
        ("predict", "score"),
        ("weight", "snr"),
        ("time", "cosine"),
        ("time_std", 0),
        ("time_mean", math.nan),
        ("shift", 0),
        ("min_time", 1),
        ("snr_gamma", -1),
        ("data_std", math.inf),
        ("sigma_min", 0),
        ("sigma_max", 0.001),
        ("sampling_grid", "even"),
        ("multiscale", 0),
    ],
)
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"DiffusionConfig.{field}"):
        DiffusionConfig(**{field: value})


@pytest.mark.parametrize("predict", PREDICTIONS)
def test_wide_patches_are_warned_of(predict: str) -> None:
    config = DiffusionConfig(predict=predict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_wide_patches(config, 32, 128)
        if predict == "x":
            warn_wide_patches(config, 768, 768)
    if predict != "x":
        with pytest.warns(UserWarning, match="33 numbers at a width of 128"):
            warn_wide_patches(config, 33, 128)


# What a config's canonical form was while all formulations shared one class, of weight: min_snr and snr_gamma: 3.
FORMER_DIGESTS = {
    "flow": "08c9e193d6607ffd3fa29f6a9925d7b1845e399a766b2229d4606090ab7f81cb",
    "vp": "55ad4fb5975d9c0f8dba6b8ec79a677ee8bafe90ffdcdd77e06d39da0818c502",
    "ve": "30c9ba82f338d0807d59f58d262c27b7b9681544a392a5dd6dd4237ef20e4943",
    "edm": "f91d3bfa9862380d06d4e8a5e5df0fa1fba67b3cfc78b16dcf54c5cbf06d1f53",
}


@pytest.mark.parametrize("name", FORMULATIONS)
def test_a_formulation_is_a_class_of_its_own_with_the_canonical_form_of_before(name: str) -> None:
    config = DiffusionConfig(name, weight="min_snr", snr_gamma=3.0)
    assert type(config) is KINDS[name] and config.formulation == name
    assert digest(config) == FORMER_DIGESTS[name]
    saved = json.loads(json.dumps(dataclasses.asdict(config)))  # as config.json of a model folder has it
    read = DiffusionConfig(**saved)
    assert type(read) is KINDS[name] and read == config == pickle.loads(pickle.dumps(config))
    other = "vp" if name == "flow" else "flow"
    with pytest.raises(ValueError, match=f"formulation: expected {name}, got '{other}'"):
        KINDS[name](formulation=other)


def read_yaml(**values: object) -> DiffusionConfig:
    return TypeAdapter(DiffusionConfig).validate_python(values)


def test_yaml_is_read_as_the_class_of_its_formulation() -> None:
    assert type(read_yaml()) is KINDS["flow"]
    for name in FORMULATIONS:
        assert read_yaml(formulation=name, shift=2) == DiffusionConfig(name, shift=2)


@pytest.mark.parametrize(
    ("values", "taken_by"),
    [
        ({"sigma_min": 0.01}, {"ve", "edm"}),
        ({"sigma_max": 40.0}, {"ve", "edm"}),
        ({"sigma_max": 40.0, "sampling_grid": "logsnr"}, {"flow", "vp", "ve", "edm"}),
        ({"sigma_max": 40.0, "sampling_grid": "time"}, {"ve", "edm"}),  # the path's own, whatever the grid
        ({"data_std": 0.5}, {"edm"}),
        ({"data_std": 0.5, "weight": "edm"}, {"flow", "vp", "ve", "edm"}),
        ({"snr_gamma": 3.0}, set()),
        ({"time_mean": 0.5}, {"flow", "edm"}),  # the other two have no normal where nothing is said of the law
        ({"min_time": 0.1}, set()),
    ],
)
def test_each_formulation_refuses_the_options_that_it_does_not_read(values: dict, taken_by: set[str]) -> None:
    option = next(iter(values))
    for name in FORMULATIONS:
        if name in taken_by:
            assert getattr(read_yaml(formulation=name, **values), option) == values[option]
        else:
            with pytest.raises(ValidationError, match=rf"{option}: has no effect here; it is an option of"):
                read_yaml(formulation=name, **values)


def test_the_schema_shows_each_formulation_with_its_own_descriptions() -> None:
    schema = TypeAdapter(DiffusionConfig).json_schema()
    shown = {kind["properties"]["formulation"]["const"]: kind["properties"] for kind in schema["$defs"].values()}
    assert set(shown) == set(FORMULATIONS) and len(schema["anyOf"]) == len(FORMULATIONS)
    for properties in shown.values():
        assert all(node["description"] for node in properties.values())
    assert "null: uniform" in shown["vp"]["time"]["description"]
    assert "null: lognormal" in shown["edm"]["time"]["description"]
    assert "in training" in shown["ve"]["sigma_max"]["description"]
    assert "in training" not in shown["flow"]["sigma_max"]["description"]
