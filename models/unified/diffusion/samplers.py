"""Samplers: from noise to data along a path. In: a `Denoiser`, noise e ~ N(0, 1) and path times. Out: samples.

They know nothing of formulations, networks or guidance, only x_t = a(t) x + b(t) e, dx_t/dt and D(x_t, t):

    euler      order 1, one evaluation a step: dx_t/dt in the path's own t
    heun       order 2, two a step, the last step Euler's                       (arXiv 2206.00364, algorithm 1)
    ddim       order 1, one a step, exact where D is constant; Euler itself on flow, ve and edm  (arXiv 2010.02502)
    dpmpp_2m   order 2, one a step: D extrapolated in ln(a / b)                  (arXiv 2211.01095, algorithm 2)
    amed       two a step, the last one Euler's: the mean direction of each step from one point inside it, which a
               trained predictor picks (arXiv 2312.00094; `models.unified.diffusion.amed`)

Imports with the standard library alone: the names of the samplers are part of what a request may say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

Time: TypeAlias = "float | Tensor"


class Denoiser(Protocol):
    """Times are floats; training AMED passes scalar tensors too, with gradients."""

    def scales(self, t: Time) -> tuple[Time, Time]:
        """(a, b) of x_t = a x + b e."""
        ...

    def denoised(self, x: Tensor, t: Time) -> Tensor:
        """E[x_0 | x_t], in x_t's shape."""
        ...

    def velocity(self, x: Tensor, t: Time) -> Tensor:
        """dx_t/dt of the probability flow."""
        ...


@runtime_checkable
class MidpointPredictor(Protocol):
    """Picks (r, c, a) of each of the len(times) - 2 steps before the last."""

    def steps(self, times: Sequence[float]) -> list[tuple[float, float, float]]: ...


def euler(denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> Tensor:
    for now, after in zip(times, times[1:]):
        x = x + (after - now) * denoiser.velocity(x, now)
    return x


def heun(denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> Tensor:
    for now, after in zip(times, times[1:]):
        slope = denoiser.velocity(x, now)
        ahead = x + (after - now) * slope
        # Velocities are singular at t = 0.
        x = ahead if after == 0 else x + (after - now) * (slope + denoiser.velocity(ahead, after)) / 2
    return x


def _towards(denoiser: Denoiser, x: Tensor, data: Tensor, now: float, after: float) -> Tensor:
    """x_after = a' D + b' (x - a D) / b: the solution where D is constant."""
    (a, b), (a_after, b_after) = denoiser.scales(now), denoiser.scales(after)
    return (b_after / b) * x + (a_after - a * b_after / b) * data


def ddim(denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> Tensor:
    for now, after in zip(times, times[1:]):
        x = _towards(denoiser, x, denoiser.denoised(x, now), now, after)
    return x


def dpmpp_2m(denoiser: Denoiser, x: Tensor, times: Sequence[float]) -> Tensor:
    before, last_step = None, math.inf
    for now, after in zip(times, times[1:]):
        data = ahead = denoiser.denoised(x, now)
        step = _log_snr_half(denoiser, after) - _log_snr_half(denoiser, now)
        # Order 1 where a step is infinitely long: into t = 0, and out of pure noise.
        if before is not None and math.isfinite(step) and math.isfinite(last_step):
            ahead = data + step / (2 * last_step) * (data - before)
        x = _towards(denoiser, x, ahead, now, after)
        before, last_step = data, step
    return x


def _log_snr_half(denoiser: Denoiser, t: float) -> float:
    a, b = denoiser.scales(t)
    return math.log(a / b) if a > 0 and b > 0 else math.copysign(math.inf, a - b)


def amed_step(denoiser: Denoiser, x: Tensor, now: float, after: float, r: Time, c: Time, a: Time) -> Tensor:
    """One step of AMED from `now` to `after` > 0: Euler to t_mid = after^r now^(1-r), then
    x + c (after - now) v(x_mid, a t_mid), where a t_mid stays at or below `now`. r, c, a: floats or scalar
    tensors, through which gradients flow."""
    middle = now * (after / now) ** r
    x_mid = x + (middle - now) * denoiser.velocity(x, now)
    told = a * middle
    told = min(told, now) if isinstance(told, float) else told.clamp(max=now)
    return x + c * (after - now) * denoiser.velocity(x_mid, told)


def amed(denoiser: Denoiser, x: Tensor, times: Sequence[float], predictor: MidpointPredictor) -> Tensor:
    for (now, after), step in zip(zip(times, times[1:-1]), predictor.steps(times)):
        x = amed_step(denoiser, x, now, after, *step)
    return euler(denoiser, x, times[-2:])


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "amed": amed,
}


def check_sampler(sampler: str, predictor: object | None) -> None:
    """ValueError naming what is wrong with a request to sample; of the predictor only whether there is one counts."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if sampler == "amed" and predictor is None:
        raise ValueError("predictor: is missing, which the sampler amed needs: what `omniloom sampler` wrote")
    if sampler != "amed" and predictor is not None:
        raise ValueError(f"predictor: goes with the sampler amed, not with {sampler}")


def sample(
    sampler: str,
    denoiser: Denoiser,
    noise: Tensor,
    times: Sequence[float],
    predictor: MidpointPredictor | None = None,
) -> Tensor:
    """Draw samples in the shape of `noise`.

    sampler    a name of `SAMPLERS`
    noise      N(0, 1); it is scaled to b(times[0])
    times      falling path times, the last one 0 (`models.unified.diffusion.diffusion.sampling_times`)
    predictor  of "amed"
    ValueError for an unknown sampler, and for a predictor that is missing, not used, or of other times.
    """
    check_sampler(sampler, predictor)
    run = SAMPLERS[sampler] if predictor is None else partial(SAMPLERS[sampler], predictor=predictor)
    return run(denoiser, denoiser.scales(times[0])[1] * noise, times)
