"""Paths in a JSON Schema: what a place in a config may hold. In: the schema that pydantic makes of the config's model,
and the keys that lead to a place. Out: the keys that are known there, the kinds of values that fit.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel


def place(schema: dict, loc: list[str]) -> tuple[list[str], list[str]]:
    """The path in the file that pydantic's `loc` stands for, and the keys that its last part's mapping may have.

    Between the keys of the file, pydantic names the choice that it took where a field has several types.
    """
    path: list[str] = []
    choices, known = _choices(schema, schema), []
    for part in loc:
        keys = {name: node for choice in choices for name, node in choice.get("properties", {}).items()}
        chosen = [
            choice
            for choice in choices
            if any(node.get("const") == part for node in choice.get("properties", {}).values())
        ]
        if part not in keys and chosen:
            choices = chosen
            continue
        inside = _below(choices, part)
        if part not in keys and not inside and not keys and path:
            continue
        path.append(part)
        known = list(keys)
        choices = [found for node in ([keys[part]] if part in keys else inside) for found in _choices(schema, node)]
    return path, known


def kinds(schema: dict, key: str) -> set[str]:
    """JSON Schema's names of the types that may stand at `key`, a path as overrides have it; empty where none may."""
    choices = _choices(schema, schema)
    for part in re.findall(r"[^.\[\]]+", key):
        choices = [found for node in _below(choices, part) for found in _choices(schema, node)]
    return {_kind(choice) for choice in choices}


def booleans_for_numbers(model: type[BaseModel], values: Any) -> Iterator[str]:
    """Paths of the `values` that are true or false where the model has numbers, of which pydantic makes 1 and 0."""
    leaves = list(_booleans(values, ()))
    schema = model.model_json_schema() if leaves else {}
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
