"""Loose rows: the rows that a text may be, whatever its file is called, in each way that it can be read.

In: a text. Out: lists of rows by their columns: JSON of any shape, JSON lines, YAML, XML and HTML (`markup`), pictures
of a Markdown page, sections of INI, and lines that tabs, commas, semicolons, bars or blanks divide, with a line of
names and without one. Which of them is meant, who asked tells by what they say.
"""

from __future__ import annotations

import configparser
import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omniloom.stages.ingest.look import markup

_PICTURE = re.compile(r"!\[([^\]]+)\]\(\s*<?([^)\s>]+)")  # of Markdown: what it shows, and where it lies
_NAMED = re.compile(r'\s*(?:"([^"]+)"|(\S+))\s+(.*)')  # a name, which quotes keep together, and what is said of it
_DELIMITERS = ("\t", ",", ";", "|")
_DEEPEST = 4  # lists in a document


def readings(text: str, ending: str = "") -> Iterator[list[dict[str, Any]]]:
    """The rows that a text may be, in each way that it can be read; YAML is read of files that end so alone, as most
    texts are some YAML."""
    if ending in (".yaml", ".yml"):
        yield from _lists(yaml_document(text))
        return
    if ending == ".ini":
        yield _sections(text)
        return
    if text.lstrip()[:1] == "<":
        yield from markup.readings(text)
        return
    if text.lstrip()[:1] in ("{", "["):
        try:
            yield from _lists(json.loads(text))
            return
        except (ValueError, RecursionError):
            pass
        try:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            yield [flat(row) for row in rows if isinstance(row, dict)]
        except (ValueError, RecursionError):
            pass
        return
    if pictures := _PICTURE.findall(text):
        yield [{"picture": place, "caption": shown} for shown, place in pictures]
    lines = [line for line in text.splitlines() if line.strip()]
    for delimiter in _DELIMITERS:
        if sum(delimiter in line for line in lines) > 0.5 * len(lines):
            yield from _delimited(text, lines, delimiter)
    yield [dict(_numbered([named[1] or named[2], named[3]])) for line in lines if (named := _NAMED.match(line))]


def _sections(text: str) -> list[dict[str, Any]]:
    """The sections of an INI file, each with its name."""
    parser = configparser.ConfigParser(
        delimiters=("=",), strict=False, interpolation=None, allow_no_value=True, default_section=""
    )
    try:
        parser.read_string(text)
    except configparser.Error:
        return []
    return [{"section": name, **parser[name]} for name in parser.sections()]


def yaml_document(text: str) -> Any:
    """The document; None of what is none. No tag makes an object."""
    import yaml

    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _numbered(fields: Sequence[str]) -> list[tuple[str, str]]:
    """Fields of a line without a header, by their numbers."""
    return [(str(number), value) for number, value in enumerate(fields)]


def _delimited(text: str, lines: list[str], delimiter: str) -> Iterator[list[dict[str, Any]]]:
    """By the names of its first line, without such a line, and as two fields. Where lines have more of the delimiter
    than the first, nobody quoted: what is too much belongs to the last field."""
    try:
        table = [row for row in csv.reader(text.splitlines(keepends=True), delimiter=delimiter) if row]
    except csv.Error:
        table = []
    if table:
        header = table[0]
        if any(len(row) > len(header) for row in table):
            table = [[part.strip() for part in line.split(delimiter, len(header) - 1)] for line in lines]
        if len(set(header)) == len(header) > 1:
            yield [dict(zip(header, row, strict=False)) for row in table[1:]]
        yield [dict(_numbered(row)) for row in table]
    yield [dict(_numbered([part.strip() for part in line.split(delimiter, 1)])) for line in lines]


def _lists(document: Any, depth: int = 0) -> Iterator[list[dict[str, Any]]]:
    """Every list of objects in a document, those within such a list taken together by their names, and every object as
    rows of its keys and values."""
    if depth > _DEEPEST:
        return
    if isinstance(document, list):
        if objects := [row for row in document if isinstance(row, dict)]:
            yield [flat(row) for row in objects]
            within: dict[str, list[Any]] = defaultdict(list)
            for key, value in ((key, value) for row in objects for key, value in row.items()):
                if isinstance(value, list):
                    within[key] += value
            for values in within.values():
                yield from _lists(values, depth + 1)
        elif pairs := [row for row in document if isinstance(row, list) and len(row) > 1]:
            yield [{str(number): value for number, value in enumerate(row)} for row in pairs]
        return
    if isinstance(document, dict):
        yield [
            {"key": key, **(flat(value) if isinstance(value, dict) else {"value": value})}
            for key, value in document.items()
        ]
        for value in document.values():
            yield from _lists(value, depth + 1)


def flat(row: Mapping[str, Any], before: str = "", depth: int = 0) -> dict[str, Any]:
    """Fields of objects in an object by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and depth < 3:
            found |= flat(value, f"{before}{key}.", depth + 1)
        else:
            found[f"{before}{key}"] = value
    return found
