"""Tables: rows that name media files in one column and say something of them in another, whatever columns are called.

In: for each file the lists of rows that it may be (`loose_rows`). Out: a `Pairing` of each file that names media files,
and one of files with the same columns that each name files of their own.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omniloom.stages.ingest.look.media_names import MediaNames
from omniloom.stages.ingest.look.said import MOST, Pairing, caption_column, texts_of, worth


def tables(names: MediaNames, read: Mapping[str, Iterable[list[dict[str, Any]]]]) -> list[Pairing]:
    """Of each file that names media files the best reading, and files with the same columns together. `read`: the
    lists of rows that a file may be."""
    alike: dict[str, list[Pairing]] = defaultdict(list)
    known, called = {path: list(lists) for path, lists in read.items()}, set[str]()
    for least in (2, 1):  # a folder of one picture has a table of one row, as its neighbours have of several
        for path, lists in known.items():
            if least == 1 and posixpath.basename(path) not in called:
                continue
            folder = posixpath.dirname(path)
            found = [named for rows in lists if (named := rows_said(names, [folder] * len(rows), rows, least))]
            if found:
                captions, shown = max(found, key=lambda pair: worth(pair[0]))
                alike[shown].append(Pairing(captions, frozenset([path]), f"{path} ({shown})"))
                known[path] = []
                called.add(posixpath.basename(path))
    return [way for shown, ways in alike.items() for way in (*ways, *_together(ways, shown))]


def _together(ways: Sequence[Pairing], shown: str) -> list[Pairing]:
    """Several files as one, where each names media files of its own."""
    captions = {name: texts for way in ways for name, texts in way.captions.items()}
    if len(ways) < 2 or len(captions) < sum(len(way.captions) for way in ways):
        return []
    return [Pairing(captions, frozenset().union(*(way.files for way in ways)), f"{len(ways)} files ({shown})")]


def rows_said(
    names: MediaNames, folders: Sequence[str], rows: Sequence[dict[str, Any]], least: int
) -> tuple[dict[str, list[str]], str] | None:
    """Captions by media file, and the fields that they are of, in words; `folders` are those of the
    rows' files. `least`: so many rows name a file."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if len(rows) < least or len(columns) < 2:
        return None
    placed = list(zip(rows, folders, strict=True))
    matched = {column: [names.find(row.get(column), folder) for row, folder in placed] for column in columns}
    key = max(columns, key=lambda column: len(set(matched[column]) - {None}))
    named_by = matched[key]
    if sum(name is not None for name in named_by) < MOST * len(rows):
        return None
    # A column of the same few names, such as counts, stands for no file.
    if len(set(named_by) - {None}) < least:
        return None
    column = caption_column([{k: v for k, v in row.items() if k != key} for row in rows], names)
    if column is None:
        return None
    found: dict[str, list[str]] = defaultdict(list)
    for name, row in zip(named_by, rows, strict=True):
        if name:
            found[name] += [text for text in texts_of(row.get(column)) if text not in found[name]]
    captions = {name: texts for name, texts in found.items() if texts}
    shown = f"the fields {key} and {column}" if not key.isdecimal() else "lines that begin with a name"
    return (captions, shown) if captions else None
