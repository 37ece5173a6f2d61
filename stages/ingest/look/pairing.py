"""Pairing: captions that lie where no source reads them, found by the names that they share with pictures or videos.

In: a root, the paths of its media files and of the other files. Out: a `Pairing`, captions by media file. Looked at,
the way that gives captions to most files counts:
    texts    text, JSON or XML files of the media files' names, in whichever folder; `7.en.txt` is of 7.png too
    tables   files of rows, one of whose columns names media files, with or without folders and endings, by numbers too:
             JSON of any shape, JSON lines, YAML, XML, HTML, Markdown, INI, and lines that tabs, commas, semicolons,
             bars or blanks divide, whatever the file's suffix, and tables of SQLite; of several such files all that
             name files of their own
    told     what the media files themselves say (`told`)
    lines    a file with as many lines as there are media files, in the order of their names
Names of folders and of files are captions where they look like words: `named`.
"""

from __future__ import annotations

import json
import posixpath
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations.fields import captions_of
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.files.suffixes import suffix
from omniloom.stages.ingest.look import databases, markup
from omniloom.stages.ingest.look.loose_rows import flat, readings
from omniloom.stages.ingest.look.told import told

LEAST = 0.2  # of the media files have to get a caption
_ROWS = 0.5  # of a table's rows have to name media files
_FILE_BYTES = 64 << 20
_TABLES = (
    *(".csv", ".tsv", ".txt", ".token", ".json", ".jsonl", ".ndjson", ".lst", ".list", ".tab", ".psv", ""),
    *(".yaml", ".yml", ".xml", ".html", ".htm", ".xhtml", ".md", ".markdown", ".ini", ".ion"),
)
# What photo managers leave in a folder and listings pass over, as its name begins with a dot.
_HIDDEN = ".picasa.ini"

_TEXTS = (".txt", ".caption", ".cap", ".text", ".tags", ".prompt")
_LINES = ("caption", "label", "prompt", "description", "annotation", "text", "title")
_SUFFIXES = frozenset((*_TABLES, *_TEXTS))
# Folders that say how a set is divided, or what kind of files they hold, and not what is on them.
_DIVISIONS = re.compile(
    r"(train|training|test|testing|val|valid|validation|dev|eval|images?|imgs?|pics?|pictures?|photos?|jpe?gs?|pngs?|"
    r"videos?|clips?|media|data|files?|raw|part|shard|batch|set|split)s?[_-]?\d*",
    re.IGNORECASE,
)
_LANGUAGE = re.compile(r"[._](caption|[a-z]{2,3}(-[A-Za-z]{2,4})?)$")  # behind a stem: 7.en.txt
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Pairing:
    """`captions` by the path of a media file; `files` that they are in; `how` in words."""

    captions: dict[str, list[str]]
    files: frozenset[str]
    how: str


def paired(root: Root, media: Sequence[str], others: Sequence[str]) -> Pairing | None:
    """The pairing of most media files; None where no way gives enough of them a caption."""
    names = _Names(media)
    hidden = {posixpath.join(posixpath.dirname(path), _HIDDEN) for path in media}
    texts = {path: text for path in (*others, *sorted(hidden)) if (text := _text(root, path)) is not None}
    rows = {path: readings(text, suffix(path)) for path, text in texts.items()}
    rows |= {path: databases.readings(_bytes(root, path)) for path in others if suffix(path) in databases.SUFFIXES}
    ways = [_beside(names, texts), *_tables(names, rows)]
    found = [way for way in ways if way and len(way.captions) >= max(2, LEAST * len(media))]
    if not found and (captions := told(root, media, LEAST)):
        of_each = {path: [caption] for path, caption in captions.items()}
        found = [Pairing(of_each, frozenset(), "what is written in the files themselves")]
    if not found and (way := _lines(media, texts)):
        found = [way]
    return max(found, key=lambda way: _worth(way.captions), default=None)


def named(media: Sequence[str]) -> Literal["folder", "file"] | None:
    """Whether the files' own folders, or the files, are called by words that say what is on them."""
    folders = Counter(posixpath.basename(posixpath.dirname(path)) for path in media)
    spoken = [name for name in folders if _WORD.search(name) and not _DIVISIONS.fullmatch(name)]
    if len(folders) > 1 and len(spoken) == len(folders) and statistics.median(folders.values()) > 1:
        return "folder"
    words = [_WORD.findall(posixpath.splitext(posixpath.basename(path))[0].replace("_", " ")) for path in media]
    several = sum(len(found) > 1 for found in words)
    distinct = {word.lower() for found in words for word in found}
    if several > 0.6 * len(media) and len(distinct) > max(10, 0.2 * len(media)):
        return "file"
    return None


# ---- names ----


class _Names:
    """Media files by what may stand for them: their path, any end of it, with and without its ending, its number."""

    def __init__(self, media: Sequence[str]):
        self._known: dict[str, str | None] = {}
        for path in media:
            parts = path.lower().split("/")
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                for spelt in {end, posixpath.splitext(end)[0]}:
                    self._known[spelt] = path if self._known.get(spelt, path) == path else None
        numbers: dict[int, str | None] = {}
        for path in media:
            stem = posixpath.splitext(posixpath.basename(path))[0]
            if digits := re.fullmatch(r"\D*?0*(\d+)", stem):
                number = int(digits[1])
                numbers[number] = path if numbers.get(number, path) == path else None
        self._numbers = numbers

    def find(self, value: Any, folder: str = "") -> str | None:
        """The media file that a value names, in `folder` before others; None where it names none, or several."""
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        if isinstance(value, int):
            return self._numbers.get(value)
        text = re.sub(r"#\d+$", "", value.strip().strip("\"'")).replace("\\", "/").lower()
        parts = [part for part in text.split("?")[0].split("/") if part not in ("", ".", "..")]
        if not parts or len(text) > 1000:
            return None
        for inside in (f"{folder.lower()}/", "") if folder else ("",):
            for start in range(len(parts)):
                if found := self._known.get(inside + "/".join(parts[start:])):
                    return found
        return self._numbers.get(int(text)) if text.isdecimal() and len(text) < 16 else None


def _text(root: Root, path: str) -> str | None:
    """The text of a file that may hold captions; None of any other."""
    if suffix(path) not in _SUFFIXES:
        return None
    data = _bytes(root, path)
    name, skip = encoding.by_mark(data, "utf-8")
    try:
        return data[skip:].decode(name)
    except UnicodeDecodeError:
        return None


def _bytes(root: Root, path: str) -> bytes:
    """None at all of what cannot be read."""
    try:
        return root.read(path, _FILE_BYTES)
    except MediaError:
        return b""


# ---- files of the same names ----


def _beside(names: _Names, texts: Mapping[str, str]) -> Pairing | None:
    found: dict[str, list[str]] = {}
    files: dict[str, str] = {}
    documents: dict[str, Any] = {}
    for path, text in texts.items():
        stem = posixpath.splitext(path)[0]
        whose = names.find(stem) or names.find(_LANGUAGE.sub("", stem))
        if whose is None:
            continue
        if suffix(path) in (".json", ".xml"):
            if (document := _document(path, text)) is not None:
                documents[path], files[path] = document, whose
        elif suffix(path) in _TEXTS and any(map(str.isalpha, text)):  # boxes of a detector say nothing
            files[path] = whose
            found.setdefault(whose, []).append(text.strip())
    rows = {path: flat(document) for path, document in documents.items() if isinstance(document, dict)}
    if column := _caption_column(list(rows.values()), names):
        for path, row in rows.items():
            found.setdefault(files[path], []).extend(_texts(row.get(column)))
    found = {path: captions for path, captions in found.items() if captions}
    what = "documents" if rows and column else "texts"
    used = frozenset(path for path, whose in files.items() if whose in found)
    return Pairing(found, used, f"{what} of the same names") if found else None


def _document(path: str, text: str) -> Any:
    """JSON, or an XML document as a row; None of what is neither."""
    try:
        return markup.document(text) if suffix(path) == ".xml" else json.loads(text)
    except (ValueError, RecursionError):
        return None


# ---- tables ----


def _tables(names: _Names, read: Mapping[str, Iterable[list[dict[str, Any]]]]) -> list[Pairing]:
    """Of each file that names media files the best reading, and files with the same columns together. `read`: the
    lists of rows that a file may be."""
    alike: dict[str, list[Pairing]] = defaultdict(list)
    known, called = {path: list(lists) for path, lists in read.items()}, set[str]()
    for least in (2, 1):  # a folder of one picture has a table of one row, as its neighbours have of several
        for path, lists in known.items():
            if least == 1 and posixpath.basename(path) not in called:
                continue
            folder = posixpath.dirname(path)
            found = [named for rows in lists if (named := _rows(names, folder, rows, least))]
            if found:
                captions, shown = max(found, key=lambda pair: _worth(pair[0]))
                alike[shown].append(Pairing(captions, frozenset([path]), f"{path} ({shown})"))
                known[path] = []
                called.add(posixpath.basename(path))
    return [way for shown, ways in alike.items() for way in (*ways, *_together(ways, shown))]


def _worth(captions: Mapping[str, Sequence[str]]) -> tuple[int, int]:
    """How many have a caption, and of as many how many different ones there are: albums say the same of many."""
    return len(captions), len({text for texts in captions.values() for text in texts})


def _together(ways: Sequence[Pairing], shown: str) -> list[Pairing]:
    """Several files as one, where each names media files of its own."""
    captions = {name: texts for way in ways for name, texts in way.captions.items()}
    if len(ways) < 2 or len(captions) < sum(len(way.captions) for way in ways):
        return []
    return [Pairing(captions, frozenset().union(*(way.files for way in ways)), f"{len(ways)} files ({shown})")]


def _rows(
    names: _Names, folder: str, rows: list[dict[str, Any]], least: int
) -> tuple[dict[str, list[str]], str] | None:
    """Captions by media file, and the fields that they are of, in words; `folder` is that of the rows' file. `least`:
    so many rows name a file."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if len(rows) < least or len(columns) < 2:
        return None
    matched = {column: [names.find(row.get(column), folder) for row in rows] for column in columns}
    key = max(columns, key=lambda column: len(set(matched[column]) - {None}))
    named_by = matched[key]
    if sum(name is not None for name in named_by) < _ROWS * len(rows):
        return None
    # A column of the same few names, such as counts, stands for no file.
    if len(set(named_by) - {None}) < least:
        return None
    column = _caption_column([{k: v for k, v in row.items() if k != key} for row in rows], names)
    if column is None:
        return None
    found: dict[str, list[str]] = defaultdict(list)
    for name, row in zip(named_by, rows, strict=True):
        if name:
            found[name] += [text for text in _texts(row.get(column)) if text not in found[name]]
    captions = {name: texts for name, texts in found.items() if texts}
    shown = f"the fields {key} and {column}" if not key.isdecimal() else "lines that begin with a name"
    return (captions, shown) if captions else None


def _caption_column(rows: Sequence[Mapping[str, Any]], names: _Names) -> str | None:
    """The column of captions: of those that hold texts the one that is called so, else the one with the longest, those
    behind that say the same of most rows, such as albums."""
    lengths: dict[str, tuple[bool, float]] = {}
    for column in dict.fromkeys(key for row in rows for key in row):
        values = [text for row in rows for text in _texts(row.get(column))]
        if len(values) >= _ROWS * len(rows) and not _refer(values[:50], names):
            own = len(set(values)) > 0.5 * len(values)
            lengths[column] = own, statistics.fmean(len(text) for text in values)
    for column in lengths:
        if captions_of([column.rsplit(".", 1)[-1].lower()]):
            return column
    return max(lengths, key=lambda column: lengths[column], default=None)


def _refer(values: Sequence[str], names: _Names) -> bool:
    """Whether texts name files, places or contents, and say nothing."""
    what = re.compile(r"[a-z]+://\S+|[0-9a-f]{16,}|[\d\W]+", re.IGNORECASE)
    return sum(bool(names.find(text) or what.fullmatch(text)) for text in values) > 0.5 * len(values)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text for item in values if isinstance(item, str) and (text := " ".join(item.split()))]


# ---- lines ----


def _lines(media: Sequence[str], texts: Mapping[str, str]) -> Pairing | None:
    """A file that is called after captions and has a line for each media file."""
    for path, text in texts.items():
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        called = posixpath.basename(path).lower()
        if len(lines) == len(media) > 1 and suffix(path) == ".txt" and any(word in called for word in _LINES):
            order = sorted(media, key=_natural)
            pairs = {name: [line] for name, line in zip(order, lines, strict=True)}
            return Pairing(pairs, frozenset([path]), f"the lines of {path}, in the order of the files' names")
    return None


def _natural(path: str) -> list[tuple[int, str]]:
    """The order in which people count: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.lower())]
