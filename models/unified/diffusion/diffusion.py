"""Training targets and denoising by a formulation. In: clean latents x, noise e, path times t, network outputs F.
Out: noisy latents x_t, weighted residuals, denoised latents D, velocities dx_t/dt, the times themselves.

Every function takes the `DiffusionConfig` first; the letters are those of `models.unified.diffusion.formulations`.
Times are floats or tensors that broadcast against latents: (B, L, 1) against (B, L, C).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.formulations import Time, clamp, formulation

Network = Callable[[Tensor, Time], Tensor]
_RHO = 7


def corrupt(config: DiffusionConfig, latents: Tensor, noise: Tensor, times: Time) -> Tensor:
    """x_t = a x + b e."""
    a, b = formulation(config).scales(times)
    return a * latents + b * noise


def residual(config: DiffusionConfig, prediction: Tensor, latents: Tensor, noise: Tensor, times: Time) -> Tensor:
    """sqrt(w) (D - x) per element, up to its sign: the loss is its square. Computed as sqrt(w) |c_out| (F - target),
    so that nothing cancels and nothing but the two floored scales divides: with weight "v" the loss is
    |F - v|^2 where predict="v", and |F - x|^2 / max(t, min_time)^2 for flow where predict="x" (JiT)."""
    row, floor = formulation(config), config.min_time
    a, b = row.scales(times)
    gain = row.v_gain(times)
    if config.predict == config.weight == "v":
        return prediction - row.v(latents, noise, times)
    if config.predict == "x":
        target, b = latents, clamp(b, floor)
        factor = _weight(config, a, b, gain) / (b * b)
    elif config.predict == "noise":
        target, a = noise, clamp(a, floor)
        factor = _weight(config, a, b, gain) / (a * a)
    else:
        target = row.v(latents, noise, times)
        factor = _weight(config, a, b, gain) * gain
    return factor**0.5 * (prediction - target)


def _weight(config: DiffusionConfig, a: Time, b: Time, v_gain: Time) -> Time:
    """b^2 w, which is finite on the whole path; w of |D - x|^2 is `config.weight`."""
    if config.weight == "v":
        return 1 / v_gain
    if config.weight == "edm":
        return b * b / config.data_std**2 + a * a
    if config.weight == "x":
        return b * b
    if config.weight == "noise":
        return a * a
    snr, most = a * a, config.snr_gamma * b * b  # both times b^2
    return most.clamp(max=snr) if isinstance(most, Tensor) else min(snr, most)


def denoised(config: DiffusionConfig, prediction: Tensor, x_t: Tensor, times: Time) -> Tensor:
    """D that a prediction stands for. Noise divides by a, floored at `min_time`."""
    if config.predict == "x":
        return prediction
    row = formulation(config)
    if config.predict == "noise":
        a, b = row.scales(times)
        return (x_t - b * prediction) / clamp(a, config.min_time)
    skip, out = row.v_to_data(times)
    return skip * x_t + out * prediction


def velocity(config: DiffusionConfig, prediction: Tensor, x_t: Tensor, times: Time) -> Tensor:
    """dx_t/dt that a prediction stands for, on the probability flow: da/dt D + db/dt (x_t - a D) / b. x divides by
    b and noise by a, floored at `min_time`."""
    row = formulation(config)
    if config.predict == "v":
        return row.v_to_velocity(prediction, x_t, times)
    (a, b), (da, db) = row.scales(times), row.slopes(times)
    if config.predict == "x":
        return (db * x_t - row.rate * prediction) / clamp(b, config.min_time)
    return (da * x_t + row.rate * prediction) / clamp(a, config.min_time)


class NetworkDenoiser:
    """A network as samplers see it (`models.unified.diffusion.samplers.Denoiser`): network(c_in x^, c_noise) gives
    F, in x^'s shape; guidance is its business. Times are path times."""

    def __init__(self, config: DiffusionConfig, network: Network):
        self.config, self.row, self.network = config, formulation(config), network

    def scales(self, t: Time) -> tuple[Time, Time]:
        return self.row.scales(t)

    def _predict(self, x: Tensor, t: Time) -> Tensor:
        return self.network(x * self.row.input_scale(t), self.row.c_noise(t))

    def denoised(self, x: Tensor, t: Time) -> Tensor:
        return denoised(self.config, self._predict(x, t), x, t)

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        return velocity(self.config, self._predict(x, t), x, t)


def sample_times(config: DiffusionConfig, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Training times, float32 of `shape` on the generator's device, by the config's law, then shifted. A normal
    under the sigmoid is arXiv 2403.03206, eq. 19; a normal of ln sigma arXiv 2206.00364, table 1."""
    row = formulation(config)
    draw = torch.rand if config.time == "uniform" else torch.randn
    drawn = draw(shape, generator=generator, device=generator.device)
    if config.time == "uniform":
        return row.shift(row.spread(drawn))
    normal = config.time_mean + config.time_std * drawn
    return row.shift(row.time(normal) if config.time == "lognormal" else row.spread(normal.sigmoid()))


def sampling_times(config: DiffusionConfig, num_steps: int) -> list[float]:
    """num_steps + 1 path times that fall to 0, on the config's grid (arXiv 2206.00364, eq. 5, for "edm"), shifted."""
    if num_steps < 1:
        raise ValueError(f"num_steps: expected at least 1, got {num_steps}")
    row = formulation(config)
    if config.sampling_grid == "time":
        times = torch.linspace(row.largest, 0, num_steps + 1, dtype=torch.float64)
    else:
        way = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        high, low = math.log(config.sigma_max), math.log(config.sigma_min)
        if config.sampling_grid == "logsnr":
            logs = high + way * (low - high)
        else:
            ends = [math.exp(end / _RHO) for end in (high, low)]
            logs = _RHO * torch.log(ends[0] + way * (ends[1] - ends[0]))
        times = torch.cat((row.time(logs), torch.zeros(1, dtype=torch.float64)))
    return row.shift(times).tolist()


def finer_times(now: float, end: float, parts: int, power: int = _RHO) -> list[float]:
    """parts + 1 times from `now` to `end`, even in t^(1/power)."""
    high, low = now ** (1 / power), end ** (1 / power)
    return [now, *((high + part / parts * (low - high)) ** power for part in range(1, parts)), end]


def warn_wide_patches(config: DiffusionConfig, latent_dim: int, width: int) -> None:
    """UserWarning where noise or v is asked of positions with more than width / 4 numbers. Clean pictures lie near
    a low-dimensional set, noise fills every direction: a network that has to give noise must carry all of a
    patch's numbers, one that gives x need not (JiT, arXiv 2511.13720). Patches of width / 16 were harmless there;
    width (there) and width / 2 (measured on digits) were not; the rule stands between."""
    if config.predict != "x" and 4 * latent_dim > width:
        warnings.warn(
            f"diffusion.predict={config.predict!r} is asked of positions with {latent_dim} numbers at a width of "
            f"{width}; above a quarter of the width, predict='x' learns far better (arXiv 2511.13720)",
            stacklevel=3,
        )
