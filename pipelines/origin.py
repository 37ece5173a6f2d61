"""Where a config comes from: its file with the lines of its keys, and the overrides. In: an error about a field. Out:
the same error with the file and, in its message, the line or that an override set it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from omniloom.infra.errors import InputError


@dataclass(frozen=True)
class Origin:
    """`lines` maps a path of keys to its line in `file`; `overridden` are the keys of the overrides."""

    file: str
    lines: dict[tuple[str, ...], int]
    overridden: tuple[str, ...] = ()

    @classmethod
    def of(cls, file: str, overridden: Iterable[str] = ()) -> Origin:
        keys = (".".join(re.findall(r"[^.\[\]]+", key)) for key in overridden)
        return cls(file, _line_numbers(file), tuple(keys))

    def place(self, path: Sequence[str]) -> str:
        """` (line N)` of the key, or of the nearest one around it; ` (from an override)`; empty where nothing says."""
        field = ".".join(path)
        if any(f"{field}.".startswith(f"{key}.") or key.startswith(f"{field}.") for key in self.overridden):
            return " (from an override)"
        for length in range(len(path), 0, -1):
            if line := self.lines.get(tuple(path[:length])):
                return f" (line {line})"
        return ""

    def placed(self, error: InputError) -> InputError:
        """The error about a field of the config, with this file and the line. A file that it names already, such as
        one that the field names, goes into its message."""
        if not error.field or error.file == self.file:
            return error
        message = f"{error.file}: {error.message}" if error.file else error.message
        return type(error)(message + self.place(error.field.split(".")), field=error.field, file=self.file)


def together(errors: Sequence[InputError]) -> InputError:
    """One error for several: the first, and a line for each of the others."""
    first, *rest = errors
    lines = "".join(f"\n  {error.field}: {error.message}" for error in rest)
    return InputError(first.message + lines, field=first.field, file=first.file)


def _line_numbers(file: str) -> dict[tuple[str, ...], int]:
    """Path of keys -> line in the YAML file; empty where it cannot be composed."""
    lines: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node, path: tuple[str, ...]) -> None:
        lines[path] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                walk(value, (*path, str(key.value)))
                lines[(*path, str(key.value))] = key.start_mark.line + 1
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
