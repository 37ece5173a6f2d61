"""The gate of `evaluate`: which figures a model needs before it gets the alias.

In: the config's `gate`, the figures, and those of the model that holds the alias. Out: a `Verdict` with its reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from omniloom.stages.evaluate.measures import Better, Figure, all_names, named, near


class Bound(BaseModel):
    """The least and the greatest value of a figure that pass; either may be left out."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    min: float | None = None
    """The least value that passes."""
    max: float | None = None
    """The greatest value that passes."""

    @model_validator(mode="before")
    @classmethod
    def _a_mapping(cls, value: Any) -> Any:
        if not isinstance(value, dict | Bound):
            raise ValueError(f"expected a number, {{min: ...}} or {{max: ...}}, got {value!r}")
        return value

    @model_validator(mode="after")
    def _bounds_something(self) -> Bound:
        if self.min is None and self.max is None:
            raise ValueError("expected {min: ...}, {max: ...} or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, which nothing passes")
        return self

    def failure(self, value: Any) -> str | None:
        """The reason why a figure's value fails; None where it passes."""
        if failure := _no_number(value):
            return failure
        if self.min is not None and value < self.min:
            return f"{value:.4g} is below min {self.min:g}"
        if self.max is not None and value > self.max:
            return f"{value:.4g} is above max {self.max:g}"
        return None


class Gate(BaseModel):
    """Conditions for the alias: bounds of figures by their names, such as `bits_per_byte: {max: 2.5}`. A
    bare number is the least value of a figure that is better when higher."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, Bound] = Field(init=False)
    better_than_champion: tuple[str, ...] = ()
    """Figures, one or a list, by which the model has to be at least as good as the one that holds the alias."""

    @field_validator("better_than_champion", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_least_values(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {"min": bound} if _is_number(bound) and _higher(name) else bound for name, bound in value.items()}

    @model_validator(mode="after")
    def _names_are_figures(self) -> Gate:
        for name in (*self.bounds, *self.better_than_champion):
            _figure(name)
        for name in self.better_than_champion:
            if not _figure(name).better:
                raise ValueError(f"better_than_champion: {name} is no measure; neither way is better")
        return self

    @property
    def bounds(self) -> dict[str, Bound]:
        return self.model_extra or {}

    @property
    def no_worse(self) -> dict[str, Better]:
        """Of the figures that are held against the champion's, which way is better."""
        return {name: way for name in self.better_than_champion if (way := _figure(name).better)}

    @property
    def given(self) -> bool:
        return bool(self.bounds or self.better_than_champion)

    def check(self, measured: Mapping[str, Figure]) -> None:
        """ValueError for what is asked of a figure that is not among those `measured`."""
        for name in (*self.bounds, *self.better_than_champion):
            if name not in measured:
                raise ValueError(f"{name}: is not measured by this pipeline{near(name, measured)}")


def _no_number(value: Any) -> str | None:
    if not isinstance(value, int | float):
        return "was not measured"
    return None if math.isfinite(value) else f"is {value}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _higher(name: str) -> bool:
    """True; ValueError where a bare number is no least value of the figure."""
    if (figure := named(name)) is None:
        raise ValueError(f"{name}: unknown metric{near(name, all_names())}")
    if figure.better != "higher":
        way = "is better when lower" if figure.better else "is better neither way"
        raise ValueError(f"{name} {way}, and a bare number is a least value; expected {{max: ...}} or {{min: ...}}")
    return True


@dataclass(frozen=True)
class Verdict:
    """`passed` is None where no gate is given; `failures` say why it is False, a figure each."""

    passed: bool | None
    failures: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.passed is None:
            return "No gate given: the model is registered without the alias"
        return "Gate passed" if self.passed else "Gate not passed: " + "; ".join(self.failures)


def _figure(name: str) -> Figure:
    """ValueError for a name that no figure has."""
    if (figure := named(name)) is None:
        raise ValueError(f"{name}: unknown metric{near(name, all_names())}")
    return figure


def judge(gate: Gate, metrics: Mapping[str, Any], champion: Mapping[str, Any] | None | str) -> Verdict:
    """`champion`: the figures of the model that holds the alias, None where there is none, or why they are not known.
    What is not measured, or is no number, fails."""
    if not gate.given:
        return Verdict(None)
    failures = [
        f"{name} {failure}" for name, bound in gate.bounds.items() if (failure := bound.failure(metrics.get(name)))
    ]
    failures += [
        f"{name} {failure}"
        for name in gate.better_than_champion
        if (failure := _worse(_figure(name), metrics.get(name), champion, name))
    ]
    return Verdict(not failures, tuple(failures))


def _worse(figure: Figure, value: Any, champion: Mapping[str, Any] | None | str, name: str) -> str | None:
    """Why the value is not known to be as good as the champion's; None where it is, or there is no champion."""
    if failure := _no_number(value):
        return failure
    if champion is None:
        return None
    if isinstance(champion, str):
        return f"could not be held against the champion's: {champion}"
    theirs = champion.get(name)
    if failure := _no_number(theirs):
        return f"could not be held against the champion's, which {failure}"
    if value < theirs if figure.better == "higher" else value > theirs:
        return f"{value:.4g} is worse than the champion's {theirs:.4g}"
    return None
