"""Flow matching on a Gaussian, where every answer is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from models.unified.config import DiffusionConfig
from models.unified.diffusion import (
    SAMPLERS,
    corrupt,
    sample_times,
    sampling_times,
    shift_times,
    squared_error,
    velocity,
)

MEAN, STD = 1.5, 0.4


def exact_velocity(x: torch.Tensor, t: float) -> torch.Tensor:
    """E[e - x | x_t] for x ~ N(MEAN, STD^2)."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return -MEAN + (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN)


def sampling_error(sampler: str, steps: int) -> float:
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    drawn = SAMPLERS[sampler](exact_velocity, noise, sampling_times(DiffusionConfig(), steps))
    return float((drawn - (MEAN + STD * noise)).abs().max())


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(sampler: str, order: int) -> None:
    coarse, fine = sampling_error(sampler, 64), sampling_error(sampler, 128)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert fine < (0.02 if order == 1 else 0.001)


def test_shift_divides_the_signal_to_noise_ratio_by_k_squared() -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    shifted = shift_times(t, 3.0)
    ratio = ((1 - t) / t).square() / ((1 - shifted) / shifted).square()
    torch.testing.assert_close(ratio, torch.full_like(ratio, 9.0))
    assert (
        sampling_times(DiffusionConfig(shift=3.0), 4)[0] == 1
        and sampling_times(DiffusionConfig(), 4)[-1] == 0
    )


def test_times_follow_their_law() -> None:
    g = torch.Generator().manual_seed(0)
    uniform = sample_times(DiffusionConfig(time="uniform"), (20000,), g)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.003)
    logit = torch.logit(sample_times(DiffusionConfig(time_mean=-0.8, time_std=0.8), (20000,), g).double())
    assert logit.mean().item() == pytest.approx(-0.8, abs=0.02)
    assert logit.std().item() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("predict", ["v", "x"])
def test_the_right_prediction_has_no_error_and_gives_v(predict: str) -> None:
    config = DiffusionConfig(predict=predict)
    g = torch.Generator().manual_seed(1)
    x, e = (torch.randn(4, 6, 3, generator=g, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)[:, None, None].expand(4, 6, 1)
    noisy = corrupt(x, e, t)
    right = e - x if predict == "v" else x
    torch.testing.assert_close(velocity(config, right, noisy, t), e - x)
    assert squared_error(config, right, x, e, noisy, t).max() < 1e-20
    wrong = squared_error(config, right + 0.1, x, e, noisy, t)
    expected = 0.01 if predict == "v" else 0.01 / t.square()
    torch.testing.assert_close(wrong, torch.as_tensor(expected, dtype=torch.float64).expand_as(wrong))


def test_x_prediction_is_floored_near_data() -> None:
    config = DiffusionConfig(predict="x", min_time=0.05)
    x = torch.zeros(1, 1, 1)
    error = squared_error(config, x + 1, x, x, x, torch.full((1, 1, 1), 1e-4))
    assert error.item() == pytest.approx(400.0, rel=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("formulation", "vp"),
        ("predict", "noise"),
        ("time", "cosine"),
        ("time_std", 0),
        ("shift", 0),
        ("min_time", 1),
    ],
)
def test_bad_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"DiffusionConfig.{field}"):
        DiffusionConfig(**{field: value})


def test_no_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_steps"):
        sampling_times(DiffusionConfig(), 0)
