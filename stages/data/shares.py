"""Shares by name, the same all the time or changing with the steps of a training. For configs: no torch, no arrays."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Name = TypeVar("Name", bound=str)
Share = Annotated[float, Field(ge=0)]


class SharesFrom(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    step: int = Field(ge=0)
    """The first step that they hold for."""
    shares: dict[str, Share] = Field(min_length=1)
    """Share by name."""


class Schedule(BaseModel):
    """Shares that change at steps. A change holds for what is planned after it: from the next window of
    `packing.window_rows` rows on."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    schedule: list[SharesFrom] = Field(min_length=1)
    """In rising order of steps, from step 0 on; each names the same."""
    change: Literal["step", "linear"] = "step"
    """Whether shares jump at a step, or go there in a line from the one before."""

    @model_validator(mode="after")
    def _in_order(self) -> Schedule:
        if self.schedule[0].step:
            raise ValueError(f"schedule.0.step: expected 0, got {self.schedule[0].step}")
        for number, (first, second) in enumerate(pairwise(self.schedule), 1):
            if second.step <= first.step:
                raise ValueError(f"schedule.{number}.step: expected more than {first.step}, got {second.step}")
            if set(second.shares) != set(first.shares):
                raise ValueError(
                    f"schedule.{number}.shares: expected {', '.join(sorted(first.shares))}, got "
                    f"{', '.join(sorted(second.shares))}"
                )
        return self


def _form(value: Any) -> str:
    is_schedule = isinstance(value, Schedule) or (isinstance(value, Mapping) and "schedule" in value)
    return "(schedule)" if is_schedule else "(shares)"


# The keys tell which of the two is meant, so that an error is about that one. Names in parentheses are no keys.
BY_FORM = Discriminator(_form)
AS_SHARES, AS_SCHEDULE = Tag("(shares)"), Tag("(schedule)")


def of_names(value: Any, names: tuple[str, ...]) -> Any:
    """The value; ValueError where a schedule names what is none of these."""
    for number, point in enumerate(value.schedule if isinstance(value, Schedule) else ()):
        if unknown := set(point.shares) - set(names):
            raise ValueError(
                f"schedule.{number}.shares: expected some of {', '.join(names)}, got {', '.join(sorted(unknown))}"
            )
    return value


Shares = Mapping[Name, float] | Schedule


def shares_at(shares: Shares[Name], step: int) -> Mapping[Name, float]:
    if not isinstance(shares, Schedule):
        return shares
    known = shares.schedule
    number = sum(point.step <= step for point in known) - 1
    now = known[number]
    if shares.change == "step" or number + 1 == len(known):
        return cast(Mapping[Name, float], now.shares)
    later = known[number + 1]
    part = (step - now.step) / (later.step - now.step)
    return cast(
        Mapping[Name, float],
        {name: (1 - part) * share + part * later.shares[name] for name, share in now.shares.items()},
    )


def stages(shares: Shares[Name]) -> list[Mapping[Name, float]]:
    """All that they are, between which they are nothing else than a mean of two."""
    if not isinstance(shares, Schedule):
        return [shares]
    return [cast(Mapping[Name, float], point.shares) for point in shares.schedule]


def most(shares: Shares[Name]) -> Mapping[Name, float]:
    """The greatest share that each has at any step."""
    held = stages(shares)
    return {name: max(point[name] for point in held) for name in held[0]}
