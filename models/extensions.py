"""Parts that other distributions bring, by the entry points of their `pyproject.toml`. Standard library only.

In: a group of entry points, such as `omniloom.quantizers`. Out: the objects that they name, for the tables here.
Errors: `ExtensionError` naming the distribution and the entry point.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

Row = TypeVar("Row")


class ExtensionError(ValueError):
    """A part that another distribution brings cannot be used."""


def load(reference: str) -> Any:
    """The object that "module:name" stands for."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


def extended(group: str, row_type: type[Row], rows: Iterable[Row]) -> dict[str, Row]:
    """The table of `rows` and of those that the entry points of `group` name, by `name`, the rows of others last."""
    table = {row.name: row for row in rows}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        row = _read(point, row_type)
        if row.name in table:
            raise ExtensionError(f"{_told(point)}: {row.name!r} is taken")
        table[row.name] = row
    return table


def _read(point: EntryPoint, row_type: type[Row]) -> Row:
    try:
        row = point.load()
    except Exception as error:  # whatever the module of another raises
        raise ExtensionError(f"{_told(point)}: cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(row, row_type):
        raise ExtensionError(f"{_told(point)}: expected a {row_type.__name__}, got {type(row).__name__}")
    return row


def _told(point: EntryPoint) -> str:
    distribution = f" of {point.dist.name}" if point.dist else ""
    return f"{point.group}: {point.name} = {point.value}{distribution}"
