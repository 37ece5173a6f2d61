"""Braces: `shard-{000..127}.tar` and `{train,validation}/a.txt`, names of files as a shell expands them."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MOST = 1_000_000


def has_braces(uri: str) -> bool:
    return any(_choices(match.group(1)) for match in _BRACES.finditer(uri))


def folder(uri: str) -> str:
    """The folder below which all names lie that the braces stand for."""
    return posixpath.dirname(uri[: uri.index("{")]) if "/" in uri[: uri.index("{")] else ""


def expand(pattern: str) -> list[str]:
    """All names, in the order of the braces; ValueError for more than a million."""
    names = []
    for name in _expanded(pattern):
        names.append(name)
        if len(names) > _MOST:
            raise ValueError(f"stands for more than {_MOST:,} names")
    return names


def _expanded(pattern: str) -> Iterator[str]:
    for match in _BRACES.finditer(pattern):
        if choices := _choices(match.group(1)):
            for choice in choices:
                for rest in _expanded(pattern[match.end() :]):
                    yield pattern[: match.start()] + choice + rest
            return
    yield pattern


def _choices(inside: str) -> list[str] | range_of | None:
    """What a pair of braces stands for: `a,b`, `0..9` or `000..127`, with the zeros that are written; else nothing."""
    if match := _RANGE.fullmatch(inside):
        return range_of(*match.groups())
    return inside.split(",") if "," in inside else None


class range_of:
    """Numbers from one to another, both included, as wide as the wider is written where it has a leading zero."""

    def __init__(self, first: str, last: str):
        self.first, self.last = int(first), int(last)
        padded = any(re.match(r"-?0\d", text) for text in (first, last))
        self.width = max(len(first), len(last)) if padded else 0

    def __iter__(self) -> Iterator[str]:
        step = 1 if self.last >= self.first else -1
        for number in range(self.first, self.last + step, step):
            yield str(number).zfill(self.width)
