"""Configs of a diffusion, one dataclass a formulation: the path from data to noise, what the network predicts, the
loss's weight, the law of the training times and the grid of the sampling times. In: plain numbers, as YAML gives them.
Out: a frozen, validated dataclass. Standard library only. `models.unified.diffusion.formulations` and `.diffusion`
compute with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

from omniloom.models.checks import (
    Conditional,
    Derived,
    FieldError,
    Use,
    as_written,
    derive,
    derived,
    require,
)
from omniloom.models.docstrings import field_docstrings

PREDICTIONS = ("x", "noise", "v")
WEIGHTS = ("v", "x", "noise", "min_snr", "edm")
TIME_LAWS = ("uniform", "logit_normal", "lognormal")
SAMPLING_GRIDS = ("time", "edm", "logsnr")
_ANY_KIND: Mapping[str, Use] = {
    "time_mean": Use(lambda c: c.time != "uniform", "time: logit_normal and lognormal"),
    "time_std": Use(lambda c: c.time != "uniform", "time: logit_normal and lognormal"),
    "min_time": Use(lambda c: c.predict != "v", "predict: x and noise"),
    "snr_gamma": Use(lambda c: c.weight == "min_snr", "weight: min_snr"),
}
_DATA_STD = {"data_std": Use(lambda c: c.weight == "edm", "formulation: edm and of weight: edm")}
_SIGMA_GRID = Use(
    lambda c: c.sampling_grid in ("edm", "logsnr"),
    "formulation: ve and edm, and of sampling_grid: edm and logsnr",
)
_SIGMAS = {"sigma_min": _SIGMA_GRID, "sigma_max": _SIGMA_GRID}


class _Usual(NamedTuple):
    """Defaults that a formulation's authors train and sample with."""

    time: str
    time_mean: float
    time_std: float
    sampling_grid: str


@dataclass(frozen=True)
class DiffusionConfig(Conditional):
    """A path x_t = a(t) x + b(t) e from data x to noise e, with noise level sigma = b / a, and what is trained on it.
    t = 0 is data.

    The base of one class a formulation: `DiffusionConfig("edm", ...)` makes an `EDMDiffusionConfig`, and where a config
    has a field of this type, pydantic reads the class that `formulation` names. All have the same keys, as each option
    has an effect in each of them, though in some only beside a certain weight, grid, law or prediction: `USES` of a
    class names those.
    """

    USES: ClassVar[Mapping[str, Use]] = _ANY_KIND
    USUAL: ClassVar[_Usual]

    formulation: str = "flow"
    """The path from data to noise."""
    predict: Literal["x", "noise", "v"] = "v"
    """The network's target: the data, the noise, or the formulation's own v."""
    time: Derived[Literal["uniform", "logit_normal", "lognormal"]] = derived()
    """Law of the training times."""
    time_mean: Derived[float] = derived()
    """Mean of the normal: of logit t under logit_normal, of ln sigma under lognormal. null: the usual one of the
    formulation's usual law, 0 of another."""
    time_std: Derived[float] = derived()
    """Deviation of that normal. null: the usual one of the formulation's usual law, 1 of another."""
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
    """Deviation of one channel of the data, for weight: edm; latents and pixels arrive normalised."""
    sigma_min: float = 0.002
    """The least noise level of the sampling grids edm and logsnr."""
    sigma_max: float = 80.0
    """The largest noise level of the sampling grids edm and logsnr."""
    sampling_grid: Derived[Literal["time", "edm", "logsnr"]] = derived()
    """Sampling times: time: even in t; edm: even in sigma^(1/7); logsnr: even in ln sigma; the last two go from
    sigma_max to sigma_min and then to 0. null: the formulation's usual one."""
    multiscale: int = 1
    """Scales of the loss: 1 is the loss alone, each further one halves the grid (arXiv 2301.11093)."""

    def __new__(cls, formulation: Any = "flow", *args: Any, **fields: Any) -> DiffusionConfig:
        if cls is not DiffusionConfig:
            return super().__new__(cls)
        if formulation not in FORMULATIONS:
            reason = f"expected one of {', '.join(FORMULATIONS)}, got {as_written(formulation)}"
            raise FieldError(cls, "formulation", reason)
        return super().__new__(KINDS[formulation])

    def __post_init__(self) -> None:
        own = type(self).formulation
        require(self.formulation == own, self, "formulation", own)
        self._fill_in_usual()
        for name, choices in _CHOICES.items():
            require(getattr(self, name) in choices, self, name, f"one of {', '.join(choices)}")
        require(math.isfinite(self.time_mean), self, "time_mean", "a finite number")
        for name in ("time_std", "shift", "snr_gamma", "data_std", "sigma_min"):
            require(0 < getattr(self, name) < math.inf, self, name, "a positive number")
        require(self.sigma_min < self.sigma_max < math.inf, self, "sigma_max", f"a number above {self.sigma_min}")
        require(0 < self.min_time < 1, self, "min_time", "a number between 0 and 1")
        whole = isinstance(self.multiscale, int) and not isinstance(self.multiscale, bool)
        require(whole and self.multiscale >= 1, self, "multiscale", "an integer of at least 1")

    def _fill_in_usual(self) -> None:
        """Write what is usual into the fields that are null."""
        usual = self.USUAL._replace(time_mean=self._usual_mean())
        if self.time not in (None, usual.time):
            usual = usual._replace(time_mean=0.0, time_std=1.0)
        for name, value in usual._asdict().items():
            derive(self, name, value)

    def _usual_mean(self) -> float:
        return self.USUAL.time_mean

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        """A union of all formulations where the type is this class; of a formulation's own class, that class."""
        if cls is not DiffusionConfig:
            return super().__get_pydantic_core_schema__(source, handler)
        choices = {name: handler.generate_schema(kind) for name, kind in KINDS.items()}
        return {"type": "tagged-union", "choices": choices, "discriminator": _formulation_of}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: dict[str, Any], handler: Any) -> dict[str, Any]:
        schema = handler(core_schema)
        if "oneOf" in schema:  # what leaves `formulation` out fits several in JSON Schema's terms
            return {**schema, "anyOf": schema.pop("oneOf")}
        for name, described in field_docstrings(cast(Any, cls)).items():  # pydantic has none of inherited fields
            handler.resolve_ref_schema(schema)["properties"][name]["description"] = described
        return schema


@dataclass(frozen=True)
class FlowDiffusionConfig(DiffusionConfig):
    """Flow matching: a = 1 - t, b = t, v = e - x. The network sees x_t."""

    USES: ClassVar[Mapping[str, Use]] = {**_ANY_KIND, **_DATA_STD, **_SIGMAS}
    USUAL: ClassVar[_Usual] = _Usual("logit_normal", 0.0, 1.0, "time")  # arXiv 2403.03206

    formulation: Literal["flow"] = "flow"
    """The path from data to noise."""
    time: Derived[Literal["uniform", "logit_normal", "lognormal"]] = derived()
    """Law of the training times: uniform or logit_normal in t, lognormal in sigma. null: logit_normal."""
    sampling_grid: Derived[Literal["time", "edm", "logsnr"]] = derived()
    """Sampling times: time: even in t; edm: even in sigma^(1/7); logsnr: even in ln sigma; the last two go from
    sigma_max to sigma_min and then to 0. null: time."""


@dataclass(frozen=True)
class VPDiffusionConfig(DiffusionConfig):
    """Variance preserving: a = cos(pi t / 2), b = sin(pi t / 2), the cosine schedule, unshifted; v = a e - b x. The
    network sees x_t."""

    USES: ClassVar[Mapping[str, Use]] = {**_ANY_KIND, **_DATA_STD, **_SIGMAS}
    USUAL: ClassVar[_Usual] = _Usual("uniform", 0.0, 1.0, "time")  # arXiv 2301.11093

    formulation: Literal["vp"] = "vp"
    """The path from data to noise."""
    time: Derived[Literal["uniform", "logit_normal", "lognormal"]] = derived()
    """Law of the training times: uniform or logit_normal in t, lognormal in sigma. null: uniform."""
    sampling_grid: Derived[Literal["time", "edm", "logsnr"]] = derived()
    """Sampling times: time: even in t; edm: even in sigma^(1/7); logsnr: even in ln sigma; the last two go from
    sigma_max to sigma_min and then to 0. null: time."""


@dataclass(frozen=True)
class VEDiffusionConfig(DiffusionConfig):
    """Variance exploding: a = 1, b = t, so that t is sigma; v = e, the same network as predict: noise. The network sees
    x_t."""

    USES: ClassVar[Mapping[str, Use]] = {**_ANY_KIND, **_DATA_STD}
    USUAL: ClassVar[_Usual] = _Usual("uniform", 0.0, 1.0, "edm")  # arXiv 2011.13456

    formulation: Literal["ve"] = "ve"
    """The path from data to noise."""
    time: Derived[Literal["uniform", "logit_normal", "lognormal"]] = derived()
    """Law of the training times: uniform or logit_normal between sigma_min and sigma_max by the logarithm, lognormal in
    sigma. null: uniform."""
    sigma_min: float = 0.002
    """The least noise level, in training and of the sampling grids edm and logsnr."""
    sigma_max: float = 80.0
    """The largest noise level, in training and in sampling."""
    sampling_grid: Derived[Literal["time", "edm", "logsnr"]] = derived()
    """Sampling times: time: even in t; edm: even in sigma^(1/7); logsnr: even in ln sigma; the last two go from
    sigma_max to sigma_min and then to 0. null: edm."""


@dataclass(frozen=True)
class EDMDiffusionConfig(DiffusionConfig):
    """EDM: a = 1, b = t, so that t is sigma; v is EDM's preconditioned output. The network sees
    x_t / sqrt(sigma^2 + data_std^2)."""

    USES: ClassVar[Mapping[str, Use]] = _ANY_KIND
    # arXiv 2206.00364, table 1, for data of deviation 0.5
    USUAL: ClassVar[_Usual] = _Usual("lognormal", -1.2, 1.2, "edm")

    formulation: Literal["edm"] = "edm"
    """The path from data to noise."""
    time: Derived[Literal["uniform", "logit_normal", "lognormal"]] = derived()
    """Law of the training times: uniform or logit_normal between sigma_min and sigma_max by the logarithm, lognormal in
    sigma. null: lognormal."""
    time_mean: Derived[float] = derived()
    """Mean of the normal: of logit t under logit_normal, of ln sigma under lognormal. null: 0 of logit t; of ln sigma
    -1.2, its authors' for data_std 0.5, which moves with ln data_std."""
    data_std: float = 1.0
    """Deviation of one channel of the data; latents and pixels arrive normalised."""
    sigma_min: float = 0.002
    """The least noise level, in training and of the sampling grids edm and logsnr."""
    sigma_max: float = 80.0
    """The largest noise level, in training and in sampling."""
    sampling_grid: Derived[Literal["time", "edm", "logsnr"]] = derived()
    """Sampling times: time: even in t; edm: even in sigma^(1/7); logsnr: even in ln sigma; the last two go from
    sigma_max to sigma_min and then to 0. null: edm."""

    def _usual_mean(self) -> float:
        known = 0 < self.data_std < math.inf  # where it is not, its own check says so
        return self.USUAL.time_mean + (math.log(self.data_std / 0.5) if known else 0.0)


KINDS: Mapping[str, type[DiffusionConfig]] = {
    "flow": FlowDiffusionConfig,
    "vp": VPDiffusionConfig,
    "ve": VEDiffusionConfig,
    "edm": EDMDiffusionConfig,
}
FORMULATIONS = tuple(KINDS)
_CHOICES = {"predict": PREDICTIONS, "weight": WEIGHTS, "time": TIME_LAWS, "sampling_grid": SAMPLING_GRIDS}


def _formulation_of(value: Any) -> str | None:
    """The formulation of plain values, or of a config; None of anything else."""
    if isinstance(value, Mapping):
        return str(value.get("formulation", "flow"))
    return getattr(value, "formulation", None)


def pixel_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the config of raw pixels in [-1, 1]: where nothing else is said it is JiT's (arXiv 2511.13720), flow
    matching that predicts x by the v-loss, at JiT's times, which count the other way there."""
    usual: dict[str, Any] = {"predict": "x"}
    if fields.get("formulation", "flow") == "flow" and fields.get("time") in (None, "logit_normal"):
        usual |= {"time_mean": 0.8, "time_std": 0.8}
    return {**usual, **fields}


PIXEL_DIFFUSION = DiffusionConfig(**pixel_fields({}))
