"""Where a config comes from: its file with the lines of its keys, and the overrides. In: an error about a field. Out:
the same error with the file and, in its message, the line or that an override set it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from omniloom.infra.errors import InputError, together


@dataclass(frozen=True)
class Origin:
    """`lines` maps a path of keys to its line in `file`; `overridden` are the keys of the overrides. `trial` says which
    trial of a sweep the config is, with its values; `swept` are the fields that it has them of."""

    file: str
    lines: dict[tuple[str, ...], int]
    overridden: tuple[str, ...] = ()
    trial: str = ""
    swept: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: str, overridden: Iterable[str] = ()) -> Origin:
        keys = (".".join(re.findall(r"[^.\[\]]+", key)) for key in overridden)
        return cls(file, _line_numbers(file), tuple(keys))

    def line(self, path: Sequence[str]) -> int | None:
        """Of the key, or of the nearest one around it; None where an override set it, and where nothing says."""
        around = (self.lines.get(tuple(path[:length])) for length in range(len(path), 0, -1))
        return None if self._overrides(path) else next((line for line in around if line), None)

    def _overrides(self, path: Sequence[str]) -> bool:
        return _covers(self.overridden, path)

    def placed(self, error: InputError) -> InputError:
        """The error about a field of the config, with this file and, in its message, the line, or that an override set
        it. A file that it names already, such as one that the field names, goes into its message."""
        if error not in error.each():
            return together(self.placed(one) for one in error.each())
        if not error.field or error.file == self.file:
            return error
        message, path = f"{error.file}: {error.message}" if error.file else error.message, error.field.split(".")
        if self.trial:
            line = self.line(["sweep", "fields", *path] if _covers(self.swept, path) else path)
            return type(error)(f"{message} ({self.trial})", field=error.field, file=self.file, line=line)
        line = self.line(path)
        said = " (from an override)" if self._overrides(path) else f" (line {line})" if line else ""
        return type(error)(message + said, field=error.field, file=self.file, line=line)


def _covers(keys: Iterable[str], path: Sequence[str]) -> bool:
    """Whether one of the keys is that of the place, or of one around it or in it."""
    field = ".".join(path)
    return any(f"{field}.".startswith(f"{key}.") or key.startswith(f"{field}.") for key in keys)


def _line_numbers(file: str) -> dict[tuple[str, ...], int]:
    """Path of keys -> line in the YAML file; empty where it cannot be composed."""
    lines: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node, path: tuple[str, ...]) -> None:
        lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inside = (*path, *str(key.value).split("."))  # of a key with dots too, as fields of errors have it
                walk(value, inside)
                lines[inside] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                walk(item, (*path, str(index)))

    try:
        root = yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    if root is not None:
        walk(root, ())
    return lines
