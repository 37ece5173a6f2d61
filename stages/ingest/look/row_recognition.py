"""Recognition of rows: with which options the rows of a file would be records.

In: the first rows of a file, and a glimpse of what lies around it. Out: options of `RowsConfig`, and the files that the
rows name.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from omniloom.stages.data.media.limits import DEFAULT_LIMITS, MediaError
from omniloom.stages.ingest.annotations import cells, conversations, fields
from omniloom.stages.ingest.annotations.names import Names
from omniloom.stages.ingest.files.suffixes import IMAGES, VIDEOS, suffix
from omniloom.stages.ingest.formats.base import Format, Heads
from omniloom.stages.ingest.look.glimpse import BY_CONTENT, BY_NAME, BY_REFERENCE, Glimpse, Recognition

_ROWS = 20  # of a file that are looked at
_FILES = 16  # that are looked into
_TEXTS = ("text", "content", "body", "document", "article", "passage", "raw_content")
_PAIRS = (
    ("instruction", "input", "output"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("input", "output"),
)


@dataclass
class _Found:
    options: dict[str, Any] = field(default_factory=dict)
    named: set[str] = field(default_factory=set)  # files that the rows name
    strength: int = BY_CONTENT


def first_rows(glimpse: Glimpse, path: str, known: Format) -> list[dict]:
    """The first rows of a file that can be read; none of one that cannot."""
    files = Heads(glimpse.root, "utf-8", DEFAULT_LIMITS.max_bytes)
    try:
        return [row for _, row in islice(known.rows(files, {"path": path}, list), _ROWS) if isinstance(row, dict)]
    except Exception:  # of a file that is none of the format, or that cannot be read
        return []


def recognize(glimpse: Glimpse, paths: list[str], formats: Iterable[Format], usual: dict) -> Recognition | None:
    """The options with which the rows of the first files would be read, and those of the files whose rows are alike.
    Of many files the first of all are looked into; the others are taken to be as those of their folders."""
    if not paths:
        return None
    formats = tuple(formats)
    looked = {path: _looked_into(glimpse, path, formats) for path in paths[:_FILES]}
    first = next((found for found in looked.values() if found), None)
    if first is None:
        return Recognition(frozenset(paths), usual, BY_NAME)
    alike = {path: found for path, found in looked.items() if found and found.options == first.options}
    others = {posixpath.dirname(path) for path in looked if path not in alike}
    rest = [path for path in paths[_FILES:] if posixpath.dirname(path) not in others]
    named = {name for found in alike.values() for name in found.named}
    return Recognition(frozenset([*alike, *rest]) | named, first.options, first.strength)


def _looked_into(glimpse: Glimpse, path: str, formats: tuple[Format, ...]) -> _Found | None:
    known = next((known for known in formats if suffix(path) in known.suffixes), None)
    rows = first_rows(glimpse, path, known) if known else []
    return _found(rows, path, glimpse) if rows else None


def _found(rows: list[dict], path: str, glimpse: Glimpse) -> _Found | None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    values = {column: [row[column] for row in rows if row.get(column) not in (None, "")] for column in columns}
    media = next(filter(None, (_media(column, values[column], path, glimpse) for column in columns)), None)
    talk = next((column for column in columns if values[column] and all(map(_is_talk, values[column]))), None)
    if talk:
        shown = _shown(talk, values[talk])
        found = media if media and "image_field" in media.options else _Found()
        found.options = {"conversations_field": talk, **found.options}
        if shown and "image_field" not in found.options:
            found.options["image_field"] = talk
        return found
    if media:
        taken = {media.options.get("image_field"), media.options.get("video_field")}
        media.options |= _captions(columns, values, taken) | _license(values)
        return media
    text = _text(columns, values)
    return _Found(text | _license(values)) if text else None


def _media(column: str, values: list, path: str, glimpse: Glimpse) -> _Found | None:
    """That a column holds pictures or videos, or names them."""
    if not values:
        return None
    values = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
    contents = [content for value in values if (content := _content(value))]
    if len(contents) == len(values):
        option = "video_field" if all(map(_is_video, contents)) else "image_field"
        return _Found({option: column})
    names = [value.get("path") if isinstance(value, dict) else value for value in values]
    texts = [name for name in names if isinstance(name, str)]
    for option, endings in (("image_field", IMAGES), ("video_field", VIDEOS)):
        if len(texts) == len(names) and all(suffix(name) in endings for name in texts):
            return _named(option, column, texts, path, Names(glimpse.root, glimpse.having(endings)))
    return None


def _named(option: str, column: str, texts: list[str], path: str, names: Names) -> _Found | None:
    """That a column names files that are there: beside the rows' file, or below some other folder."""
    folder = posixpath.dirname(path)
    if found := {names.find(text, (folder,)) for text in texts} - {None}:
        return _Found({option: column}, _beside(found, names), BY_REFERENCE)
    for text in texts:
        ending = f"/{text.lstrip('/')}"
        root = next((known[: -len(ending)] for known in sorted(names.paths) if f"/{known}".endswith(ending)), None)
        if root is not None and (found := {names.find(text, (root,)) for text in texts} - {None}):
            place = posixpath.join(names.root.place, root) if root else names.root.place
            return _Found({option: column, "media_root": place}, _beside(found, names), BY_REFERENCE)
    return None


def _beside(found: set, names: Names) -> set[str]:
    """All files of the folders in which some were found: which of them are named, only reading every row tells."""
    folders = {posixpath.dirname(path) for path in found}
    return {path for path in names.paths if posixpath.dirname(path) in folders}


def _content(value: Any) -> bytes | None:
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, str):
        try:
            return cells.inline(value)
        except MediaError:
            return None
    return value if isinstance(value, bytes) else None


def _is_video(data: bytes) -> bool:
    if data[4:8] == b"ftyp":
        return data[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    return data.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba")) or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")


def _is_talk(value: Any) -> bool:
    try:
        return bool(conversations.parts(value, "", pictures=True))
    except MediaError:
        return False


def _shown(column: str, values: list) -> bool:
    """Whether parts of turns are pictures."""
    parts = (part for value in values for part in conversations.parts(value, column, pictures=True))
    return any(isinstance(part, conversations.Shown) and part.value for part in parts)


def _captions(columns: list[str], values: dict[str, list], taken: set) -> dict[str, Any]:
    """The fields of captions: none are named where the usual one is there, else all that may be, also within objects,
    else the longest."""
    plain = [column for column in columns if values[column] and column not in taken and not _objects(values[column])]
    if usual := fields.captions_of(plain):
        return {} if len(usual) == 1 else {"caption_field": usual}
    if within := [name for column in columns if column not in taken for name in _within(column, values[column])]:
        return {"caption_field": within if len(within) > 1 else within[0]}
    others = [column for column in columns if column not in taken and _length(values[column]) > 0]
    texts = [column for column in others if _speak(values[column])]
    return {"caption_field": max(texts, key=lambda column: _length(values[column]))} if texts else {}


def _within(column: str, values: list) -> list[str]:
    """The fields of captions in objects, or in lists of them, such as `sentences.raw`."""
    keys = list(dict.fromkeys(key for item in _objects(values) for key in item))
    return [f"{column}.{key}" for key in fields.captions_of(keys) or {"raw"}.intersection(keys)]


def _objects(values: list) -> list[dict]:
    """The objects that values are, or are lists of; none where some are something else."""
    found = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return found if all(isinstance(item, dict) for item in found) else []


def _text(columns: list[str], values: dict[str, list]) -> dict[str, Any]:
    texts = [column for column in columns if _length(values[column]) > 0 and "://" not in values[column][0][:9]]
    lowered = {column.lower(): column for column in reversed(texts)}
    for name in _TEXTS:
        if name in lowered:
            return {"text_field": lowered[name]}
    for names in _PAIRS:
        if all(name in lowered for name in names):
            return {"template": "\n".join(f"{{{lowered[name]}}}" for name in names)}
    longest = max(lowered.values(), key=lambda column: _length(values[column]), default=None)
    return {"text_field": longest} if longest else {}


def _speak(texts: list[str]) -> bool:
    """Whether some are several words, and none a place on the web."""
    return any(" " in text.strip() for text in texts) and not any("://" in text for text in texts)


def _length(values: list) -> float:
    """The mean length of texts; 0 where some are none."""
    return sum(map(len, values)) / len(values) if values and all(isinstance(value, str) for value in values) else 0


def _license(values: dict[str, list]) -> dict[str, str]:
    return {"license_field": "license"} if _length(values.get("license", [])) > 0 else {}
