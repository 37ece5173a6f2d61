"""Paths in a JSON Schema: what a place in a config may hold. In: the schema that pydantic makes of the config's model,
and the keys that lead to a place. Out: the keys that are known there, the kinds of values that fit.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel


@cache
def document(model: type[BaseModel]) -> dict:
    """The JSON Schema of `model`, to be read and not written to: making the pipeline's takes 50 ms."""
    return model.model_json_schema()


@dataclass(frozen=True)
class Kinds:
    """The kinds that a mapping may be of. `selector` is the key that says which, such as `architecture`; `schemas` are
    theirs by what it says; None and empty where the mapping is of one kind."""

    selector: str | None
    schemas: dict[str, dict]

    @property
    def default(self) -> str | None:
        """The kind of a mapping that does not say which: the first."""
        return next(iter(self.schemas), None)

    @classmethod
    def of(cls, choices: list[dict]) -> Kinds:
        for selector in sorted({key for choice in choices for key in choice.get("properties", {})}):
            said = {choice.get("properties", {}).get(selector, {}).get("const"): choice for choice in choices}
            said.pop(None, None)
            if len(said) > 1:
                return cls(selector, said)
        return cls(None, {})


@dataclass(frozen=True)
class Place:
    """A place in a config.

    path: the keys of the file that lead there.
    known: the keys that the mapping around it may have; where that is one of several `around`, those of `kind`.
    own: the kinds of what stands at the place itself.
    """

    path: list[str]
    known: list[str]
    around: Kinds
    kind: str | None
    own: Kinds

    def others_with(self, key: str) -> list[str]:
        """The other kinds of the mapping around that may have the key."""
        schemas = self.around.schemas.items()
        return [name for name, other in schemas if name != self.kind and key in other["properties"]]


def place(schema: dict, loc: list[str]) -> Place:
    """The place in the file that pydantic's `loc` stands for.

    Between the keys of the file, pydantic names the choice that it took where a field has several types.
    """
    choices = _choices(schema, schema)
    here = Place([], [], Kinds(None, {}), None, Kinds.of(choices))
    kind = None
    for part in loc:
        if part.startswith("("):  # the name of a form that its keys tell (`stages.data.shares`)
            continue
        keys = {name: node for choice in choices for name, node in choice.get("properties", {}).items()}
        if kind is None and part in here.own.schemas and part not in keys:
            kind, choices = part, [here.own.schemas[part]]
            continue
        inside = _below(choices, part)
        if part not in keys and not inside and not keys and here.path:
            continue
        choices = [found for node in ([keys[part]] if part in keys else inside) for found in _choices(schema, node)]
        here, kind = Place([*here.path, part], list(keys), here.own, kind, Kinds.of(choices)), None
    return here


def paths(schema: dict) -> list[list[str]]:
    """The paths of all keys that a config may have; an item of a list is 0."""
    found: list[list[str]] = []

    def walk(node: dict, path: list[str]) -> None:
        for choice in _choices(schema, node):
            for name, inner in choice.get("properties", {}).items():
                if [*path, name] not in found:
                    found.append([*path, name])
                walk(inner, [*path, name])
            if isinstance(choice.get("items"), dict):
                walk(choice["items"], [*path, "0"])

    walk(schema, [])
    return found


def kinds(schema: dict, key: str) -> set[str]:
    """JSON Schema's names of the types that may stand at `key`, a path as overrides have it; empty where none may."""
    choices = _choices(schema, schema)
    for part in re.findall(r"[^.\[\]]+", key):
        choices = [found for node in _below(choices, part) for found in _choices(schema, node)]
    return {_kind(choice) for choice in choices}


def booleans_for_numbers(model: type[BaseModel], values: Any) -> Iterator[str]:
    """Paths of the `values` that are true or false where the model has numbers, of which pydantic makes 1 and 0."""
    leaves = list(_booleans(values, ()))
    schema = document(model) if leaves else {}
    for path in leaves:
        found = kinds(schema, ".".join(path))
        if found & {"integer", "number"} and "boolean" not in found:
            yield ".".join(path)


def _booleans(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if isinstance(value, bool):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _booleans(inner, (*path, str(key)))


def non_finite(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """(path, value) of what is infinite or no number in a config's models, dataclasses, lists and mappings."""
    if isinstance(value, float) and not math.isfinite(value):
        yield ".".join(path), value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from non_finite(getattr(value, name), (*path, name))
        yield from non_finite(value.model_extra or {}, path)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from non_finite(getattr(value, field.name), (*path, field.name))
    elif isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from non_finite(inner, (*path, str(key)))


def _below(choices: list[dict], part: str) -> list[dict]:
    """The schemas of what a mapping holds under the key `part`, or a list at that number."""
    found = []
    for choice in choices:
        named = choice.get("properties", {}).get(part)
        listed = [*choice.get("prefixItems", [])][int(part) : int(part) + 1] if part.isdigit() else []
        other = choice.get("items") if part.isdigit() else choice.get("additionalProperties")
        found += [named] if named is not None else listed or [other]
    return [node for node in found if isinstance(node, dict)]


def _choices(schema: dict, node: dict) -> list[dict]:
    """The schemas that a value may follow, references resolved."""
    if "$ref" in node:
        return _choices(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[-1]])
    alternatives = [*node.get("anyOf", []), *node.get("oneOf", [])]
    return [found for alternative in alternatives for found in _choices(schema, alternative)] or [node]


def _kind(node: dict) -> str:
    """A schema's type; that of its constants where it names them alone."""
    constants = node.get("enum", [node["const"]] if "const" in node else [])
    return node.get("type") or ("string" if constants and all(isinstance(c, str) for c in constants) else "any")
