"""Pairing: captions that lie where no source reads them, found by the names that they share with pictures or videos.

In: a root, the paths of its media files and of the other files. Out: a `Pairing`, captions by media file. Looked at,
the way that gives captions to most files counts:
    companions   texts and documents of which each is about one media file, or those of one folder
    tables       files of rows, one of whose columns names media files, with or without folders and endings, by numbers
                 too: JSON of any shape, JSON lines, YAML, XML, HTML, Markdown, INI, and lines that tabs, commas,
                 semicolons, bars or blanks divide, whatever the file's suffix, and tables of SQLite; of several such
                 files all that name files of their own
    told         what the media files themselves say (`told`)
    lines        a file with as many lines as there are media files, in the order of their names
Names of folders and of files are captions where they look like words: `named`.
"""

from __future__ import annotations

import posixpath
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.files.suffixes import suffix
from omniloom.stages.ingest.look import databases
from omniloom.stages.ingest.look.companions import SUFFIXES as COMPANIONS
from omniloom.stages.ingest.look.companions import companions
from omniloom.stages.ingest.look.loose_rows import readings
from omniloom.stages.ingest.look.media_names import MediaNames
from omniloom.stages.ingest.look.said import Pairing, worth
from omniloom.stages.ingest.look.tables import tables
from omniloom.stages.ingest.look.told import told

LEAST = 0.2  # of the media files have to get a caption
_FILE_BYTES = 64 << 20
_TABLES = (
    *(".csv", ".tsv", ".txt", ".token", ".json", ".jsonl", ".ndjson", ".lst", ".list", ".tab", ".psv", ""),
    *(".yaml", ".yml", ".xml", ".html", ".htm", ".xhtml", ".md", ".markdown", ".ini", ".ion"),
)
# What photo managers leave in a folder and listings pass over, as its name begins with a dot.
_HIDDEN = ".picasa.ini"

_LINES = ("caption", "label", "prompt", "description", "annotation", "text", "title")
_SUFFIXES = frozenset((*_TABLES, *COMPANIONS))
# Folders that say how a set is divided, or what kind of files they hold, and not what is on them.
_DIVISIONS = re.compile(
    r"(train|training|test|testing|val|valid|validation|dev|eval|images?|imgs?|pics?|pictures?|photos?|jpe?gs?|pngs?|"
    r"videos?|clips?|media|data|files?|raw|part|shard|batch|set|split)s?[_-]?\d*",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]{2,}")


def paired(root: Root, media: Sequence[str], others: Sequence[str]) -> Pairing | None:
    """The pairing of most media files; None where no way gives enough of them a caption."""
    names = MediaNames(media)
    hidden = {posixpath.join(posixpath.dirname(path), _HIDDEN) for path in media}
    texts = {path: text for path in (*others, *sorted(hidden)) if (text := _text(root, path)) is not None}
    rows = {path: readings(text, suffix(path)) for path, text in texts.items() if suffix(path) in _TABLES}
    rows |= {path: databases.readings(_bytes(root, path)) for path in others if suffix(path) in databases.SUFFIXES}
    ways = [*companions(names, media, texts), *tables(names, rows)]
    found = [way for way in ways if len(way.captions) >= max(2, LEAST * len(media))]
    if not found and (captions := told(root, media, LEAST)):
        of_each = {path: [caption] for path, caption in captions.items()}
        found = [Pairing(of_each, frozenset(), "what is written in the files themselves")]
    if not found and (way := _lines(media, texts)):
        found = [way]
    return max(found, key=lambda way: worth(way.captions), default=None)


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


# ---- files ----


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
