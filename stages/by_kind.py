"""Parts of a config that are told apart by their `kind`, ours and those of other distributions: sources, and steps of
curation. In: a table of them by kind. Out: the type of a config's field, and what an entry point's part lacks."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field


def any_of(parts: Mapping[str, Any], unusable: Mapping[str, str]) -> Any:
    """The type of one of the parts' configs, for pydantic. A config that names no kind, or one that is installed and
    cannot be used, is refused with what there is, or with the reason in `unusable`."""

    def of_a_kind(given: Any) -> Any:
        if isinstance(given, dict) and "kind" not in given:
            raise ValueError(f"kind: is missing; the kinds are {', '.join(parts)}")
        kind = given.get("kind") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind in unusable:
            raise ValueError(f"kind: {kind} cannot be used; it is {unusable[kind]}")
        return given

    configs = reduce(or_, (part.Config for part in parts.values()))
    return Annotated[Annotated[configs, Field(discriminator="kind")], BeforeValidator(of_a_kind)]


def problem(
    name: str, part: Any, bases: Mapping[str, type], config: tuple[str, type[BaseModel]], *, has: str
) -> str | None:
    """The reason why the value of an entry point of this name cannot be a part; None where it can.

    bases   by their public names the classes of which it has to be a subclass of one
    config  the public name, and the class, of what its `Config` has to be a subclass of
    has     an attribute that may not be empty, and what it is: "suffixes, those of the files that it reads"
    """
    if not (isinstance(part, type) and issubclass(part, tuple(bases.values()))):
        return f"is no subclass of {' or '.join(bases)}"
    if abstract := getattr(part, "__abstractmethods__", None):
        return f"lacks {', '.join(sorted(abstract))}"
    own = getattr(part, "Config", None)
    if not (isinstance(own, type) and issubclass(own, config[1])):
        return f"lacks Config, a subclass of {config[0]}"
    if not getattr(part, has.partition(",")[0], ()):
        return f"lacks {has}"
    if typing.get_args(own.model_fields["kind"].annotation) != (name,):
        return f'has a Config without the line `kind: Literal["{name}"]`, the name of its entry point'
    return None
