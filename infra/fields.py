"""Marks on config fields, and what a walk finds by them. In: a config of pydantic models and dataclasses. Out: places.

A mark stands in a pydantic field's `json_schema_extra` or in a dataclass field's `metadata`:
    PLACEMENT           says only how or where a stage runs; never part of an output's identity
    LATER               came when artifacts had been made without it: left at None it is not part of an identity
    PATH, path_to(...)  names an outside file or folder: it is made absolute where the config is read, and what it
                        holds stands for it in the identity of the stage, never how its place is spelled
    PATH | PLACEMENT    is made absolute; neither the spelling nor, by this mark, the content is identity
"""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

PLACEMENT: dict[str, Any] = {"placement": True}
LATER: dict[str, Any] = {"later": True}


def path_to(
    kind: Literal["file", "folder", "any", "store", "source"] = "any",
    reads: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """The mark of a field that names outside files.

    `reads` and `beside` say which files count, as `infra.contents.read_contents` has them. A `store` is a database's
    address, of which SQLite's is a path. One from a `source` starts at the `uri` of the config around it and is among
    what that config's stage lists: its place below `uri` counts, or its name where it lies elsewhere.
    """
    return {"path": {"kind": kind, "reads": list(reads), "beside": list(beside)}}


PATH = path_to()


@dataclass(frozen=True)
class MarkedPath:
    """A field with a path in it: the keys that lead there from the root (as the YAML spells them), the mark's facts,
    and the field's value: a text, or a list or mapping of texts, or None. `around` are the configs that the field is
    in, from the root."""

    keys: tuple[str, ...]
    mark: Mapping[str, Any]
    owner: Any
    name: str
    placement: bool
    around: tuple[Any, ...]

    @property
    def value(self) -> Any:
        return getattr(self.owner, self.name)

    @property
    def field(self) -> str:
        return ".".join(self.keys)

    def places(self) -> Iterator[tuple[str, str]]:
        """(field, path or URI) of every text in the field."""
        yield from _texts(self.value, self.field)

    def replace(self, value: Any) -> None:
        object.__setattr__(self.owner, self.name, value)  # in frozen dataclasses too


def marks(owner: Any) -> dict[str, Mapping[str, Any]]:
    """The marks of the fields of a pydantic model or a dataclass (an instance or a class), by name."""
    kind = owner if isinstance(owner, type) else type(owner)
    if issubclass(kind, BaseModel):
        extras = {name: info.json_schema_extra for name, info in kind.model_fields.items()}
        return {name: extra if isinstance(extra, Mapping) else {} for name, extra in extras.items()}
    if dataclasses.is_dataclass(kind):
        return {field.name: field.metadata for field in dataclasses.fields(kind)}
    return {}


def marked_paths(value: Any, keys: tuple[str, ...] = (), around: tuple[Any, ...] = ()) -> Iterator[MarkedPath]:
    """Every field below `value` that is marked as a path and holds one."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from marked_paths(item, (*keys, str(key)), around)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from marked_paths(item, (*keys, str(number)), around)
    for name, mark in marks(value).items() if not isinstance(value, type) else ():
        item, here = getattr(value, name), (*keys, _spelled(value, name))
        if "path" not in mark:
            yield from marked_paths(item, here, (*around, value))
        elif item not in (None, ""):
            yield MarkedPath(here, mark["path"], value, name, bool(mark.get("placement")), (*around, value))


def _spelled(owner: Any, name: str) -> str:
    """The field's name as the YAML has it."""
    fields = type(owner).model_fields if isinstance(owner, BaseModel) else {}
    return (fields[name].alias if name in fields else None) or name


def _texts(value: Any, field: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield field, value
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield from _texts(item, f"{field}.{key}")


def map_texts(function, value: Any) -> Any:
    """`value` with the function applied to every text in its lists and mappings."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_texts(function, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_texts(function, item) for item in value)
    return value


def from_source(value: str, uri: str, absolute: Callable[[str], str]) -> str:
    """A path that starts at a source's absolute `uri`: relative where it lies below that, else absolute where it is
    spelled so."""
    if "://" not in value and not value.startswith(("/", "~")):
        return posixpath.normpath(value)
    return absolute(value).removeprefix(uri.rstrip("/") + "/")


def known_from_source(value: str) -> str:
    """What counts of a path that `from_source` made: all of one below the source, of any other its name."""
    inside = not value.startswith(("/", "../")) and "://" not in value
    return value if inside else f"../{posixpath.basename(value)}"
