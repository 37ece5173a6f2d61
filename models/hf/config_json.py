"""JSON that others wrote: the `config.json` of a checkpoint. In: a file, or its parsed values. Out: checked values.

Errors: ValueError naming the file, the key and what was expected. Standard library only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Of a folder's weights, the first that is there; the last two are what a BAGEL and a Show-o call theirs.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
OF_AUTHORS = ("ema.safetensors", "pytorch_model.safetensors")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


class Document:
    """The JSON object with checks; `where` names the file in errors."""

    def __init__(self, values: Any, where: str):
        if not isinstance(values, dict):
            raise ValueError(f"{where}: expected a JSON object, got {type(values).__name__}")
        self.values, self.where = values, where

    def wrong(self, key: str, expected: str) -> ValueError:
        return ValueError(f"{self.where}: {key}: expected {expected}, got {self.values.get(key)!r}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer; null counts as absent. An absent key without a default is an error."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.wrong(key, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self.wrong(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """The key says what this code computes, or nothing."""
        if self.values.get(key, allowed[0]) not in allowed:
            raise self.wrong(key, " or ".join(repr(value) for value in allowed))
