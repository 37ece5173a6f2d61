"""How `sweep.fields` names fields: by their paths, `stages.train.optimizer.lr`, as overrides do.

In the file a path is one key. While overrides are applied and references filled in the paths are nested mappings, so
that `sweep.fields.stages.train.optimizer.lr=[1e-3]` finds what the file says of the same field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SPACES = ("choice", "uniform", "log_uniform", "integers")


def nested(values: dict) -> dict:
    """A config's literals with the paths in `sweep.fields` as mappings in mappings."""
    return _with_fields(values, _nest)


def flat(values: dict) -> dict:
    """A config's literals with each field in `sweep.fields` by its whole path."""
    return _with_fields(values, lambda fields: dict(_leaves(fields, "")))


def _with_fields(values: dict, change: Any) -> dict:
    sweep = values.get("sweep")
    if not isinstance(sweep, dict) or not isinstance(sweep.get("fields"), dict):
        return values
    return values | {"sweep": sweep | {"fields": change(sweep["fields"])}}


def _nest(fields: Mapping) -> dict:
    found: dict[str, Any] = {}
    for path, space in fields.items():
        *outer, last = str(path).split(".")
        inside = found
        for key in outer:
            inside = inside.setdefault(key, {})
            if not isinstance(inside, dict) or _is_space(inside):  # the field around it is one too, which is refused
                return dict(fields)
        if last in inside:
            return dict(fields)
        inside[last] = space
    return found


def _leaves(fields: Mapping, path: str) -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, dict) and value and not _is_space(value):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _is_space(value: Mapping) -> bool:
    return any(key in SPACES for key in value)
