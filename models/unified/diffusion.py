"""Flow matching and its samplers. In: latents, noise, times, predictions. Out: noisy latents, losses,
velocities, samples. Direction throughout: t = 1 is noise, t = 0 is data,

    x_t = (1 - t) x + t e,   v = dx_t/dt = e - x,   e ~ N(0, 1)

(flow matching, arXiv 2210.02747, and rectified flow, arXiv 2209.03003, which count t the other way).
`corrupt`, `velocity` and `squared_error` are all that a formulation is; samplers know only the velocity.
Times broadcast against latents: (B, L, 1) against (B, L, C).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.unified.config import DiffusionConfig

Velocity = Callable[[Tensor, float], Tensor]


def shift_times(times: Tensor, k: float) -> Tensor:
    """t' = k t / (1 + (k - 1) t): the signal-to-noise ratio of every t divided by k^2 (arXiv 2403.03206,
    eq. 23)."""
    return k * times / (1 + (k - 1) * times)


def sample_times(config: DiffusionConfig, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Training times in (0, 1), float32, on the generator's device: uniform, or sigmoid of a normal
    (arXiv 2403.03206, eq. 19), then shifted."""
    if config.time == "uniform":
        times = torch.rand(shape, generator=generator, device=generator.device)
    else:
        normal = torch.randn(shape, generator=generator, device=generator.device)
        times = torch.sigmoid(config.time_mean + config.time_std * normal)
    return shift_times(times, config.shift)


def corrupt(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t = (1 - t) x + t e."""
    return (1 - times) * latents + times * noise


def velocity(config: DiffusionConfig, prediction: Tensor, noisy: Tensor, times: Tensor | float) -> Tensor:
    """v that a prediction stands for: itself, or (x_t - x) / t with t not below `min_time`, where
    predict="x"."""
    if config.predict == "v":
        return prediction
    floor = times.clamp(min=config.min_time) if isinstance(times, Tensor) else max(times, config.min_time)
    return (noisy - prediction) / floor


def squared_error(
    config: DiffusionConfig, prediction: Tensor, latents: Tensor, noise: Tensor, noisy: Tensor, times: Tensor
) -> Tensor:
    """|v_prediction - v|^2 per element, in the predictions' shape. Predicting x, both velocities divide by
    the same floored t, so the loss is |x_prediction - x|^2 / max(t, min_time)^2 (arXiv 2511.13720)."""
    if config.predict == "v":
        return (prediction - (noise - latents)).square()
    return (velocity(config, prediction, noisy, times) - velocity(config, latents, noisy, times)).square()


def sampling_times(config: DiffusionConfig, num_steps: int) -> list[float]:
    """num_steps + 1 times from 1 (noise) to 0 (data), even before the shift."""
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, got {num_steps}")
    return shift_times(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), config.shift).tolist()


def euler(velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    """Integrate dx/dt = velocity(x, t) along `times`; first order, one evaluation a step."""
    for now, after in zip(times, times[1:]):
        x = x + (after - now) * velocity(x, now)
    return x


def heun(velocity: Velocity, x: Tensor, times: list[float]) -> Tensor:
    """Second order, two evaluations a step; the last step is Euler's, as predictions are singular at t = 0
    (arXiv 2206.00364, algorithm 1)."""
    for now, after in zip(times, times[1:]):
        slope = velocity(x, now)
        ahead = x + (after - now) * slope
        x = ahead if after == 0 else x + (after - now) * (slope + velocity(ahead, after)) / 2
    return x


SAMPLERS = {"euler": euler, "heun": heun}
