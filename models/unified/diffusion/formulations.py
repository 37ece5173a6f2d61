"""The table of formulations of diffusion, in one frame. In: a `DiffusionConfig` and path times t. Out: the scales and
coefficients of that row, which `models.unified.diffusion.diffusion` computes with.

A path x_t = a(t) x + b(t) e from data x to noise e has the noise level sigma = b / a. On x^ = x_t / a everything is
EDM's (arXiv 2206.00364, eq. 7):  D(x^; sigma) = c_skip x^ + c_out F(c_in x^; c_noise)

              t        a           b           c_in                  v, which is F where predict="v"
    flow      0..1     1 - t       t           1 / (1 + s)           e - x                  s is sigma, d is data_std
    vp        0..1     cos(pi/2 t) sin(pi/2 t) 1 / sqrt(1 + s^2)     a e - b x
    ve        sigma    1           t           1                     e
    edm       sigma    1           t           1 / sqrt(s^2 + d^2)   (s x - d^2 e) / (d sqrt(s^2 + d^2))

    predict   c_skip                                      c_out
    x         0                                           1
    noise     1                                           -s
    v         flow 1 / (1 + s)                            -s / (1 + s)
              vp   1 / (1 + s^2)                          -s / sqrt(1 + s^2)
              ve   1                                      -s
              edm  d^2 / (s^2 + d^2)                      s d / sqrt(s^2 + d^2)

The network is told c_noise in [0, 1], which is what its time embedding is made for and where 0 is clean: t itself
for flow and vp; for ve and edm EDM's ln(s) / 4 under the affine map that takes shift * [sigma_min, sigma_max] to
[0, 1], clamped there. t = 0 is data, the largest t noise: others count the other way (flow matching,
arXiv 2210.02747; JiT, arXiv 2511.13720). The code works in x_t, not x^, which is infinite at t = 1 of flow and vp.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from omniloom.models.unified.diffusion.config import DiffusionConfig

Time = float | Tensor


def _lib(t: Time) -> ModuleType:
    """The module with sqrt, sin, cos and log for a float or a tensor: `math` or `torch`."""
    return torch if isinstance(t, Tensor) else math


def clamp(t: Time, low: float, high: float = math.inf) -> Time:
    return t.clamp(low, high) if isinstance(t, Tensor) else min(max(t, low), high)


class Flow:
    """Flow matching and rectified flow (arXiv 2210.02747, 2209.03003). The base of the table's rows: `rate` is
    a db/dt - b da/dt, which is constant on every path here; `largest` is the time of pure noise."""

    rate = 1.0

    def __init__(self, config: DiffusionConfig):
        self.config, self.largest = config, 1.0

    def scales(self, t: Time) -> tuple[Time, Time]:
        """(a, b)."""
        return 1 - t, t

    def slopes(self, t: Time) -> tuple[Time, Time]:
        """(da/dt, db/dt)."""
        return -1.0, 1.0

    def input_scale(self, t: Time) -> Time:
        """c_in / a: the network sees this times x_t."""
        return 1.0

    def c_noise(self, t: Time) -> Time:
        return t

    def time(self, log_sigma: Tensor) -> Tensor:
        """The t of a noise level; infinite ones too."""
        return log_sigma.sigmoid()

    def spread(self, unit: Tensor) -> Tensor:
        """[0, 1] onto the times, as the laws "uniform" and "logit_normal" have it."""
        return unit

    def shift(self, t: Tensor) -> Tensor:
        """The t of shift * sigma (arXiv 2403.03206, eq. 23)."""
        k = self.config.shift
        return k * t / (1 + (k - 1) * t)

    def v(self, x: Tensor, e: Tensor, t: Time) -> Tensor:
        return e - x

    def v_to_data(self, t: Time) -> tuple[Time, Time]:
        """(skip, out) of D = skip x_t + out v."""
        return 1.0, -t

    def v_to_velocity(self, v: Tensor, x_t: Tensor, t: Time) -> Tensor:
        return v

    def v_gain(self, t: Time) -> Time:
        """|D - x|^2 = gain * b^2 |F - v|^2."""
        return 1.0


class VariancePreserving(Flow):
    """a^2 + b^2 = 1 with the cosine schedule, sigma = tan(pi t / 2), and v of arXiv 2202.00512."""

    rate = math.pi / 2

    def scales(self, t: Time) -> tuple[Time, Time]:
        angle = t * (math.pi / 2)
        return _lib(t).cos(angle), _lib(t).sin(angle)

    def slopes(self, t: Time) -> tuple[Time, Time]:
        a, b = self.scales(t)
        return -self.rate * b, self.rate * a

    def time(self, log_sigma: Tensor) -> Tensor:
        return log_sigma.exp().atan() / self.rate

    def shift(self, t: Tensor) -> Tensor:
        """logSNR - 2 log k (arXiv 2301.11093, eq. 3, where k is the image's side over the reference's)."""
        if self.config.shift == 1:
            return t
        a, b = self.scales(t)
        return torch.atan2(torch.as_tensor(self.config.shift * b), torch.as_tensor(a)) / self.rate

    def v(self, x: Tensor, e: Tensor, t: Time) -> Tensor:
        a, b = self.scales(t)
        return a * e - b * x

    def v_to_data(self, t: Time) -> tuple[Time, Time]:
        a, b = self.scales(t)
        return a, -b

    def v_to_velocity(self, v: Tensor, x_t: Tensor, t: Time) -> Tensor:
        return self.rate * v


class VarianceExploding(Flow):
    """Noise of deviation t on clean data (arXiv 2011.13456); dx_t/dt = e."""

    def __init__(self, config: DiffusionConfig):
        self.config, self.largest = config, config.sigma_max
        self.low, self.range = math.log(config.sigma_min), math.log(config.sigma_max / config.sigma_min)

    def scales(self, t: Time) -> tuple[Time, Time]:
        return 1.0, t

    def slopes(self, t: Time) -> tuple[Time, Time]:
        return 0.0, 1.0

    def c_noise(self, t: Time) -> Time:
        sigma = clamp(t / self.config.shift, self.config.sigma_min, self.config.sigma_max)
        return (_lib(t).log(sigma) - self.low) / self.range

    def time(self, log_sigma: Tensor) -> Tensor:
        return log_sigma.exp()

    def spread(self, unit: Tensor) -> Tensor:
        return torch.exp(self.low + unit * self.range)

    def shift(self, t: Tensor) -> Tensor:
        return self.config.shift * t

    def v(self, x: Tensor, e: Tensor, t: Time) -> Tensor:
        return e


class Edm(VarianceExploding):
    """VE's path behind EDM's preconditioning, which keeps the network's input and output at variance 1."""

    def _total(self, t: Time) -> Time:
        return _lib(t).sqrt(t * t + self.config.data_std**2)

    def input_scale(self, t: Time) -> Time:
        return 1 / self._total(t)

    def v(self, x: Tensor, e: Tensor, t: Time) -> Tensor:
        d = self.config.data_std
        return (t * x - d * d * e) / (d * self._total(t))

    def v_to_data(self, t: Time) -> tuple[Time, Time]:
        d, total = self.config.data_std, self._total(t)
        return d * d / (total * total), t * d / total

    def v_to_velocity(self, v: Tensor, x_t: Tensor, t: Time) -> Tensor:
        total = self._total(t)
        return t / (total * total) * x_t - self.config.data_std / total * v

    def v_gain(self, t: Time) -> Time:
        return (self.config.data_std / self._total(t)) ** 2


FORMULATIONS = {"flow": Flow, "vp": VariancePreserving, "ve": VarianceExploding, "edm": Edm}


def formulation(config: DiffusionConfig) -> Flow:
    """The config's row of the table."""
    return FORMULATIONS[config.formulation](config)
