"""Configs that stand within that of the unified model, and how they are read. In: plain numbers, as YAML gives them.
Out: frozen, validated dataclasses. Standard library only.

A wrong value raises ValueError naming the class and the field.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from omniloom.models.checks import STRICT_AND_DESCRIBED, require


def positive_int(where: object, *names: str) -> None:
    for name in names:
        value = getattr(where, name)
        good = isinstance(value, int) and not isinstance(value, bool) and value > 0
        require(good, where, name, "a positive integer")


@dataclass(frozen=True)
class SpecialIds:
    """Vocabulary ids of the tokens that frame text and visual segments. The defaults are those of a
    tokenizer trained by `models.text`. bos and eos may be one token, as in Qwen's vocabularies."""

    pad: int = 0
    bos: int = 1
    eos: int = 2
    boi: int = 3
    bov: int = 4
    eoi: int = 5

    def __post_init__(self) -> None:
        values = [getattr(self, f.name) for f in fields(self)]
        for f in fields(self):
            value = getattr(self, f.name)
            require(isinstance(value, int) and value >= 0, self, f.name, "a non-negative integer")
            own = 2 if f.name in ("bos", "eos") and self.bos == self.eos else 1
            require(values.count(value) == own, self, f.name, "an id that no other special token has")


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's change of rotary frequencies for long contexts. A frequency that turns more than
    `high_freq_factor` times within `original_length` positions stays, one that turns less than
    `low_freq_factor` times is divided by `factor`, and between them the two are mixed linearly in the turns.
    `models.unified.positions.rotary` applies it."""

    __pydantic_config__: ClassVar = STRICT_AND_DESCRIBED

    factor: float
    """Divisor of the low frequencies."""
    low_freq_factor: float
    """Turns within the original length below which a frequency counts as low."""
    high_freq_factor: float
    """Turns within the original length above which a frequency stays."""
    original_length: int
    """Positions that the model was trained with before the change."""

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            value = getattr(self, name)
            good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
            require(good, self, name, "a positive number")
        require(
            self.high_freq_factor > self.low_freq_factor,
            self,
            "high_freq_factor",
            f"a number above low_freq_factor={self.low_freq_factor}",
        )
        positive_int(self, "original_length")


@dataclass(frozen=True)
class MupConfig:
    """The base of the maximal update parametrization (muP, `models.unified.mup`): the model in which it changes
    nothing. What is not named here is as in the model, and what that derives from the width the base derives from its
    own."""

    __pydantic_config__: ClassVar = STRICT_AND_DESCRIBED

    width: int
    """Width of the base."""
    layers: int | None = None
    """Blocks of the base; null: as many as the model has."""
    heads: int | None = None
    """Heads of the base; null: those that leave a head its channels."""

    def __post_init__(self) -> None:
        positive_int(self, "width", *(name for name in ("layers", "heads") if getattr(self, name) is not None))


def nested(where: object, name: str, cls: type) -> None:
    """A field that JSON or YAML gave as a mapping becomes the dataclass that it stands for."""
    value = getattr(where, name)
    if isinstance(value, dict):
        known = {f.name for f in fields(cls)}
        for key in value:
            if key not in known:
                raise ValueError(f"{type(where).__name__}.{name}.{key}: unknown field")
        try:
            object.__setattr__(where, name, cls(**value))
        except TypeError as error:  # a field without a default is missing
            raise ValueError(f"{type(where).__name__}.{name}: {error}") from None
