"""Configs of the heads of objective `next_latent`: the density of a position's latents, given what stands before.
In: plain numbers, as YAML gives them. Out: frozen, validated dataclasses, and how large and how costly a head is in
closed form. Standard library only; `models.unified.density.build` makes the heads.

head        density of C numbers, given a hidden state                                    likelihood
mixture     normals of diagonal covariance (GIVT, arXiv 2312.02116)                       exact
flow        coupling layers on a normal (NICE, arXiv 1410.8516; Real NVP, 1605.08803)     exact
fourier     a Fourier series a channel (arXiv 2402.15345), channel after channel          exact
diffusion   a small MLP that denoises (MAR, arXiv 2406.11838)                             a bound

Latents may lie on a surface (those of VQ have unit length) or on points, where a density grows without limit. So the
targets of all heads have normal noise of the deviation `noise` on them: what is modelled is their density smoothed by
that noise, whose bits are finite whatever the latents are. Scales have a floor besides, `base.MIN_SCALE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, cast

from omniloom.models.checks import STRICT_AND_DESCRIBED, require
from omniloom.models.docstrings import field_docstrings

DEFAULT = "mixture"
_TRAINED, _FIRST = 6, 4  # operations a parameter of a matrix: of any, and of one whose input has no gradient


@dataclass(frozen=True)
class HeadShape:
    """What a head stands between: hidden states of `width` channels, values of `channels`, and times as wide sinusoids
    as `time_dim`."""

    width: int
    channels: int
    time_dim: int


@dataclass(frozen=True)
class DensityConfig:
    """What the configs of all heads have; where a config has a field of this type, pydantic reads any of them there, by
    `head`."""

    __pydantic_config__: ClassVar = STRICT_AND_DESCRIBED

    head: str
    """The kind of head."""
    noise: float = 0.05
    """Deviation of the normal noise on the latents that are modelled, in units of their own deviation; 0: none."""

    def __post_init__(self) -> None:
        good = isinstance(self.noise, int | float) and not isinstance(self.noise, bool)
        require(good and 0 <= self.noise < 1, self, "noise", "a number from 0 to below 1")
        for name in ("components", "layers", "width", "frequencies", "times"):
            value = getattr(self, name, 1)
            good = isinstance(value, int) and not isinstance(value, bool) and value > 0
            require(good, self, name, "a positive integer")

    def parameters(self, shape: HeadShape) -> int:
        """Number of trained values."""
        raise NotImplementedError

    def flops(self, shape: HeadShape) -> int:
        """Operations of a forward and backward pass, a prediction (`models.unified.flops`)."""
        raise NotImplementedError

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> dict[str, Any]:
        """A union of all heads where the type is this class; of a head's own class, that class."""
        if cls is not DensityConfig:
            return handler(source)
        choices = {name: handler.generate_schema(config) for name, config in HEADS.items()}
        return {"type": "tagged-union", "choices": choices, "discriminator": _head_of}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: dict[str, Any], handler: Any) -> dict[str, Any]:
        schema = handler(core_schema)
        if "oneOf" in schema:  # what leaves `head` out fits several in JSON Schema's terms
            return {**schema, "anyOf": schema.pop("oneOf")}
        for name, described in field_docstrings(cast(Any, cls)).items():  # pydantic has none of inherited fields
            handler.resolve_ref_schema(schema)["properties"][name]["description"] = described
        return schema


@dataclass(frozen=True)
class MixtureConfig(DensityConfig):
    """A mixture of normals of diagonal covariance."""

    head: Literal["mixture"] = "mixture"
    """A mixture of normals of diagonal covariance."""
    components: int = 16
    """Normals of the mixture."""

    def outputs(self, channels: int) -> int:
        """Logits, means and scales."""
        return self.components * (2 * channels + 1)

    def parameters(self, shape: HeadShape) -> int:
        return shape.width + (shape.width + 1) * self.outputs(shape.channels)

    def flops(self, shape: HeadShape) -> int:
        return _TRAINED * shape.width * self.outputs(shape.channels)


@dataclass(frozen=True)
class CouplingConfig(DensityConfig):
    """A normalizing flow of coupling layers that know the hidden state."""

    head: Literal["flow"] = "flow"
    """A normalizing flow of coupling layers."""
    coupling: Literal["affine", "additive"] = "affine"
    """What a layer does to half of the channels, by the other half: affine moves and scales them (Real NVP), additive
    moves them (NICE). Either has a shift and a scale of all channels before the layers."""
    layers: int = 4
    """Coupling layers; of latents of one channel there are none."""
    width: int = 256
    """Width of a layer's MLP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.coupling in ("affine", "additive"), self, "coupling", "affine or additive")

    def halves(self, channels: int) -> list[tuple[int, int]]:
        """By layer, of how many channels it looks at how many it changes."""
        one, other = channels // 2, channels - channels // 2
        return [(one, other) if layer % 2 == 0 else (other, one) for layer in range(self.layers if one else 0)]

    def changes(self, channels: int) -> int:
        """What a layer says of so many channels."""
        return channels * (2 if self.coupling == "affine" else 1)

    def parameters(self, shape: HeadShape) -> int:
        w = self.width
        count = shape.width + (shape.width + 1) * w + (w + 1) * 2 * shape.channels  # norm, condition, shift and scale
        for seen, changed in self.halves(shape.channels):
            count += seen * w + 2 * (w + 1) * w + (w + 1) * self.changes(changed)
        return count

    def flops(self, shape: HeadShape) -> int:
        w = self.width
        count = shape.width * w + w * 2 * shape.channels
        for seen, changed in self.halves(shape.channels):
            count += seen * w + 2 * w * w + w * self.changes(changed)
        return _TRAINED * count


@dataclass(frozen=True)
class FourierConfig(DensityConfig):
    """A Fourier series a channel, squashed onto the line, which knows the channels before it."""

    head: Literal["fourier"] = "fourier"
    """A Fourier series a channel."""
    frequencies: int = 16
    """Frequencies of the series, beside the constant."""
    width: int = 256
    """Width of the MLP that gives a channel's series."""

    @property
    def outputs(self) -> int:
        """Of a channel: real and imaginary parts of the series' roots, shift and scale."""
        return 2 * (self.frequencies + 1) + 2

    def parameters(self, shape: HeadShape) -> int:
        w = self.width
        by_channel = 2 * shape.channels * w  # which channel it is, and what its value tells those behind it
        return shape.width + (shape.width + 1) * w + by_channel + (w + 1) * w + (w + 1) * self.outputs

    def flops(self, shape: HeadShape) -> int:
        w = self.width
        return _TRAINED * (shape.width * w + shape.channels * (w * w + w * self.outputs))


@dataclass(frozen=True)
class DiffusionHeadConfig(DensityConfig):
    """A small MLP that denoises the values of a position by themselves; its path is the training's `diffusion`."""

    head: Literal["diffusion"] = "diffusion"
    """A small MLP that denoises."""
    layers: int = 3
    """Modulated layers."""
    width: int = 256
    """Width of those layers."""
    times: int = 4
    """Times at which a position is denoised in a step of training."""

    def parameters(self, shape: HeadShape) -> int:
        w, c = self.width, shape.channels
        count = shape.width + (shape.width + 1) * w + (shape.time_dim + 1) * w + (w + 1) * w + (c + 1) * w
        # A layer: modulation to three times the width, and two matrices. Behind the last: modulation to twice.
        return count + self.layers * 5 * (w + 1) * w + 2 * (w + 1) * w + (w + 1) * c

    def flops(self, shape: HeadShape) -> int:
        w, c = self.width, shape.channels
        by_time = _FIRST * (shape.time_dim + c) * w + _TRAINED * (w * w + (5 * self.layers + 2) * w * w + w * c)
        return _TRAINED * shape.width * w + self.times * by_time


HEADS: dict[str, type[DensityConfig]] = {
    "mixture": MixtureConfig,
    "flow": CouplingConfig,
    "fourier": FourierConfig,
    "diffusion": DiffusionHeadConfig,
}


def _head_of(value: Any) -> str | None:
    """The head that plain values, or a config, are of; None of anything else."""
    if isinstance(value, Mapping):
        return str(value.get("head", DEFAULT))
    return getattr(value, "head", None)


def read_density(values: Any, where: str) -> DensityConfig:
    """The config that saved plain values stand for; `where` opens the errors, which are ValueErrors."""
    name = _head_of(values)
    if not isinstance(values, Mapping) or name not in HEADS:
        raise ValueError(f"{where}.head: expected one of {', '.join(HEADS)}, got {name!r}")
    known = [field.name for field in fields(cast(Any, HEADS[name]))]
    for field in values:
        if field not in known:
            raise ValueError(f"{where}.{field}: unknown field; {name} takes {', '.join(known[1:])}")
    return HEADS[name](**values)
