"""Config of a diffusion: the path from data to noise, what the network predicts, the loss's weight, the law of
the training times and the grid of the sampling times. In: plain numbers, as YAML gives them. Out: a frozen,
validated dataclass. Standard library only. `models.unified.diffusion.formulations` and `.diffusion` compute what stands
here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from omniloom.models.checks import Conditional, Use, require

PREDICTIONS = ("x", "noise", "v")
WEIGHTS = ("v", "x", "noise", "min_snr", "edm")
TIME_LAWS = ("uniform", "logit_normal", "lognormal")
SAMPLING_GRIDS = ("time", "edm", "logsnr")
# What each formulation's authors train and sample with: law of the times, its mean and deviation, grid.
_USUAL = {
    "flow": ("logit_normal", 0.0, 1.0, "time"),  # arXiv 2403.03206
    "vp": ("uniform", 0.0, 1.0, "time"),  # arXiv 2301.11093
    "ve": ("uniform", 0.0, 1.0, "edm"),  # arXiv 2011.13456
    "edm": ("lognormal", -1.2, 1.2, "edm"),  # arXiv 2206.00364, table 1, for data of deviation 0.5
}
FORMULATIONS = tuple(_USUAL)
_SIGMA_RANGE = "formulation: ve and edm, and of sampling_grid: edm and logsnr"


def _has_sigma_range(config: DiffusionConfig) -> bool:
    return config.formulation in ("ve", "edm") or config.sampling_grid in ("edm", "logsnr")


@dataclass(frozen=True)
class DiffusionConfig(Conditional):
    """A path x_t = a(t) x + b(t) e with noise level sigma = b / a, and what is trained on it. Noise grows with t.

    formulation   a             b             the network sees
    flow          1 - t         t             x_t
    vp            cos(pi t / 2) sin(pi t / 2) x_t: the cosine schedule, unshifted
    ve            1             t             x_t; t is sigma
    edm           1             t             x_t / sqrt(sigma^2 + data_std^2)

    Which of the other options have an effect depends on the formulation, on the weight, on the grid and on the law of
    the times alike, so that there is one class for all: `USES` says where each is read, and elsewhere it is refused.
    """

    USES: ClassVar = {
        "time_mean": Use(lambda c: c.time != "uniform", "time: logit_normal and lognormal"),
        "time_std": Use(lambda c: c.time != "uniform", "time: logit_normal and lognormal"),
        "min_time": Use(lambda c: c.predict != "v", "predict: x and noise"),
        "snr_gamma": Use(lambda c: c.weight == "min_snr", "weight: min_snr"),
        "data_std": Use(lambda c: "edm" in (c.formulation, c.weight), "formulation: edm and of weight: edm"),
        "sigma_min": Use(_has_sigma_range, _SIGMA_RANGE),
        "sigma_max": Use(_has_sigma_range, _SIGMA_RANGE),
    }

    formulation: Literal["flow", "vp", "ve", "edm"] = "flow"
    """The path from data to noise."""
    predict: Literal["x", "noise", "v"] = "v"
    """What the network gives: the data, the noise, or the formulation's own v: e - x (flow), a e - b x (vp), e (ve: the
    same network as noise), EDM's preconditioned output (edm)."""
    time: Literal["uniform", "logit_normal", "lognormal"] | None = None
    """Law of the training times: uniform or logit_normal in t, where t of ve and edm runs from sigma_min to sigma_max
    by the logarithm; lognormal in sigma. null: the formulation's usual one."""
    time_mean: float | None = None
    """Mean of the normal: of logit t under logit_normal, of ln sigma under lognormal. null: the formulation's usual
    one; that of edm, -1.2, is its authors' for data_std 0.5 and moves with ln data_std."""
    time_std: float | None = None
    """Deviation of that normal. null: the formulation's usual one."""
    shift: float = 1.0
    """k: every training and sampling time moves to k times its sigma, SNR / k^2; above 1 is towards noise, as larger
    grids need."""
    min_time: float = 0.05
    """Floor of b where x is predicted and the loss divides by it, and of a where the noise is."""
    weight: Literal["v", "x", "noise", "min_snr", "edm"] = "v"
    """w of the loss w |D - x|^2: v, x and noise make it the plain squared error of that quantity; min_snr is
    min(SNR, snr_gamma) (arXiv 2303.09556), edm is (sigma^2 + data_std^2) / (sigma data_std)^2."""
    snr_gamma: float = 5.0
    """Largest weight of weight: min_snr."""
    data_std: float = 1.0
    """Deviation of one channel of the data, for edm; latents and pixels arrive normalised."""
    sigma_min: float = 0.002
    """The least noise level of ve, edm and the grids edm and logsnr."""
    sigma_max: float = 80.0
    """The largest noise level of ve, edm and the grids edm and logsnr."""
    sampling_grid: Literal["time", "edm", "logsnr"] | None = None
    """Sampling times: time: even in t; edm: even in sigma^(1/7); logsnr: even in ln sigma; the last two go from
    sigma_max to sigma_min and then to 0. null: the formulation's usual one."""
    multiscale: int = 1
    """Scales of the loss: 1 is the loss alone, each further one halves the grid (arXiv 2301.11093)."""

    def __post_init__(self) -> None:
        def one_of(name: str, names: tuple[str, ...]) -> None:
            require(getattr(self, name) in names, self, name, f"one of {', '.join(names)}")

        one_of("formulation", FORMULATIONS)
        law, mean, std, grid = _USUAL[self.formulation]
        if self.formulation == "edm" and 0 < self.data_std < math.inf:
            mean += math.log(self.data_std / 0.5)
        usual = {
            "time": law,
            "time_mean": mean if self.time in (None, law) else 0.0,
            "time_std": std if self.time in (None, law) else 1.0,
            "sampling_grid": grid,
        }
        for name, value in usual.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        one_of("predict", PREDICTIONS)
        one_of("weight", WEIGHTS)
        one_of("time", TIME_LAWS)
        one_of("sampling_grid", SAMPLING_GRIDS)
        require(math.isfinite(self.time_mean), self, "time_mean", "a finite number")
        for name in ("time_std", "shift", "snr_gamma", "data_std", "sigma_min"):
            require(0 < getattr(self, name) < math.inf, self, name, "a positive number")
        require(self.sigma_min < self.sigma_max < math.inf, self, "sigma_max", f"a number above {self.sigma_min}")
        require(0 < self.min_time < 1, self, "min_time", "a number between 0 and 1")
        whole = isinstance(self.multiscale, int) and not isinstance(self.multiscale, bool)
        require(whole and self.multiscale >= 1, self, "multiscale", "an integer of at least 1")


def pixel_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the config of raw pixels in [-1, 1]: where nothing else is said it is JiT's (arXiv 2511.13720), flow
    matching that predicts x by the v-loss, at JiT's times, which count the other way there."""
    usual: dict[str, Any] = {"predict": "x"}
    if fields.get("formulation", "flow") == "flow" and fields.get("time") in (None, "logit_normal"):
        usual |= {"time_mean": 0.8, "time_std": 0.8}
    return {**usual, **fields}


PIXEL_DIFFUSION = DiffusionConfig(**pixel_fields({}))
