"""Rows of JSON: an object that is not too deep.

Lines are read by orjson. What it refuses or would round (NaN, half of a surrogate pair, integers of more than 64 bits)
is read by Python's own parser, which also says what is wrong with a line.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files.encoding import undecodable

_DEEPEST = 100  # levels of a row
_PLAIN = {str, int, bool, type(None)}
_LARGE = re.compile(rb"\d{19}")


def parse_row(line: bytes, encoding: str = "utf-8") -> dict:
    """A JSON object out of one line; MediaError with the reason for anything else."""
    row = _quickly(line) if encoding == "utf-8" else None
    if row is not None and _PLAIN.issuperset(map(type, row.values())):
        return row  # nearly always: there is nothing in it that could be deep, or that orjson rounds
    if row is None or _LARGE.search(line):
        row = _exactly(line, encoding)
    return checked_row(row, line.count(b"[") + line.count(b"{"))


def _quickly(line: bytes) -> dict | None:
    """None where the line is no object, or not for orjson."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if type(row) is dict else None


def _exactly(line: bytes, encoding: str) -> Any:
    try:
        return json.loads(line.decode(encoding))
    except UnicodeError as error:
        raise MediaError("invalid_json", undecodable(error, encoding).message) from None
    except RecursionError:
        raise MediaError("invalid_json", "nested too deep") from None
    except ValueError as error:
        raise MediaError("invalid_json", str(error)) from None


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
