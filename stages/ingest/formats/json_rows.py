"""Rows of JSON: an object that is not too deep."""

from __future__ import annotations

import json
from typing import Any

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files.encoding import undecodable

_DEEPEST = 100  # levels of a row


def parse_row(line: bytes, encoding: str = "utf-8") -> dict:
    """A JSON object out of one line; MediaError with the reason for anything else."""
    try:
        row = json.loads(line.decode(encoding))
    except UnicodeError as error:
        raise MediaError("invalid_json", undecodable(error, encoding).message) from None
    except RecursionError:
        raise MediaError("invalid_json", "nested too deep") from None
    except ValueError as error:
        raise MediaError("invalid_json", str(error)) from None
    return checked_row(row, line.count(b"[") + line.count(b"{"))


def checked_row(value: object, brackets: int) -> dict:
    """The value where it is an object, and not too deep; `brackets` are those that open in its text. MediaError for
    anything else."""
    if not isinstance(value, dict):
        raise MediaError("invalid_json", f"expected an object, got {type(value).__name__}")
    if brackets > _DEEPEST and _depth(value) > _DEEPEST:
        raise MediaError("invalid_json", f"nested too deep: more than {_DEEPEST} levels")
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth
