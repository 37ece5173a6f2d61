"""What other distributions add, by entry points: an installed distribution names an object in a group, such as
`filter_records = "filter_stage:STAGE"` in `omniloom.stages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from omniloom.infra.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """An object that a distribution adds."""

    entry: EntryPoint
    value: T

    def wrong(self, message: str) -> InputError:
        """The error for one that cannot be used, which says where it comes from."""
        return _wrong(self.entry, message)


def plugins(group: str, kind: type[T]) -> list[Plugin[T]]:
    """The objects of a group, by the names of their entry points. InputError where one cannot be loaded, or is of
    another type."""
    return [Plugin(entry, _value(entry, kind)) for entry in sorted(entry_points(group=group), key=lambda e: e.name)]


def _value(entry: EntryPoint, kind: type[T]) -> T:
    try:
        value = entry.load()
    except Exception as error:  # whatever the module of another raises where it is imported
        raise _wrong(entry, f"{type(error).__name__}: {error}") from error
    if not isinstance(value, kind):
        raise _wrong(entry, f"expected a {kind.__name__}, got a {type(value).__name__}")
    return value


def _wrong(entry: EntryPoint, message: str) -> InputError:
    origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
    return InputError(
        f"{message}; mend or uninstall {origin}, which adds it", field=f"{entry.name} = {entry.value}", file=entry.group
    )
