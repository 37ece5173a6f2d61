"""The gate of `evaluate`: which figures a model needs before it gets the alias.

In: the config's `gate`, the figures, and how they compare with those of the model that holds the alias. Out: a
`Verdict` with its reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from omniloom.stages.evaluate.figure import Better, Figure
from omniloom.stages.evaluate.measures import all_names, named, near, of_interval

if TYPE_CHECKING:
    from omniloom.stages.evaluate.comparing import Compared, Comparison


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
    """Conditions for the alias: bounds of figures by their names, such as `bits_per_byte: {max: 2.5}`, or of an end of
    a figure's interval, such as `bits_per_byte_high`. A bare number is the least value of a figure that is better when
    higher."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    __pydantic_extra__: dict[str, Bound] = Field(init=False)
    better_than_champion: tuple[str, ...] = ()
    """Figures, one or a list, of which the model has to be better by one, and worse by none, than the one that holds
    the alias, as `omniloom compare` decides it: by paired tests over the held-out items."""

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
            figure = _figure(name)
            if not (figure.better and figure.of_model):
                raise ValueError(f"better_than_champion: {name} is no measure of a model; neither way is better")
            if of_interval(name) or not figure.by_item:
                raise ValueError(f"better_than_champion: {name} is no mean over items, which are what is compared")
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
            if (of_interval(name) or name) not in measured:
                raise ValueError(f"{name}: is not measured by this pipeline{near(name, measured)}")


def _no_number(value: Any) -> str | None:
    if not isinstance(value, int | float):
        return "was not measured"
    return None if math.isfinite(value) else f"is {value}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _higher(name: str) -> bool:
    """True; ValueError where a bare number is no least value of the figure."""
    figure = _figure(name)
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
    if (figure := named(of_interval(name) or name)) is None:
        raise ValueError(f"{name}: unknown metric{near(name, all_names())}")
    return figure


def judge(gate: Gate, metrics: Mapping[str, Any], champion: Comparison | None | str) -> Verdict:
    """`champion`: its figures and the model's, held against each other; None where there is none, or why they could not
    be. What is not measured, or is no number, fails."""
    if not gate.given:
        return Verdict(None)
    failures = [
        f"{name} {failure}" for name, bound in gate.bounds.items() if (failure := bound.failure(metrics.get(name)))
    ]
    wanted = gate.better_than_champion
    bad = [f"{name} {failure}" for name in wanted if (failure := _no_number(metrics.get(name)))]
    if bad or not wanted or champion is None:
        failures += bad
    elif isinstance(champion, str):
        failures += [f"{', '.join(wanted)} could not be held against the champion's: {champion}"]
    else:
        failures += _against(wanted, champion)
    return Verdict(not failures, tuple(failures))


def _against(wanted: tuple[str, ...], found: Comparison) -> list[str]:
    """Why the model is not known to be better than the champion: better by one of the figures, and worse by none."""
    if missing := [name for name in wanted if name in found.apart]:
        return [
            f"{name} could not be held against the champion's, whose evaluation has no item of it in common"
            for name in missing
        ]
    if worse := [figure for figure in found.figures if figure.decision == "worse"]:
        return [f"{_said(figure)} is worse than the champion's {figure.first:.4g}" for figure in worse]
    if any(figure.decision == "better" for figure in found.figures):
        return []
    return [f"{'; '.join(map(_said, found.figures))}: not known to be better than the champion's"]


def _said(figure: Compared) -> str:
    ends = "" if figure.low is None else f" ({figure.low:+.4g} to {figure.high:+.4g})"
    return f"{figure.measure} {figure.second:.4g}, a difference of {figure.difference:+.4g}{ends},"
