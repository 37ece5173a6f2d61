"""Manifests: rows that say of files what is on them, as JSON lines or as a table (CSV, TSV).

In: a manifest's bytes. Out: rows with their line numbers; which of their fields name the file and the caption; what a
row says of its file: {"captions": [text, ...], "label", "license", "meta", "synthetic"}, and what is wrong with it.

A value that cannot be used costs that value and is told; the file that it is about stays.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import encoding as encodings
from omniloom.stages.ingest.config import PLACEHOLDER, Captions
from omniloom.stages.ingest.roots import Root, encodable

FILE_FIELDS = (
    "file",
    "file_name",
    "filename",
    "file_path",
    "filepath",
    "path",
    "image",
    "image_file",
    "image_file_name",
    "image_name",
    "image_path",
    "img",
    "img_path",
    "video",
    "video_file",
    "video_file_name",
    "video_name",
    "video_path",
)
# The second are looked at where none of the first is there.
CAPTION_FIELDS = (
    ("caption", "captions", "text", "texts"),
    ("description", "descriptions", "sentence", "sentences", "comment", "comments", "prompt", "alt_text"),
)
METADATA = ("metadata.jsonl", "metadata.csv")  # names that the datasets library gives a manifest
_TABLES = {".csv": ",;\t|", ".tsv": "\t", ".tab": "\t"}
_DEEPEST = 100  # levels of a JSON row
_ROW_BYTES = 1 << 30  # of a manifest, which is read whole


@dataclass(frozen=True)
class Bad:
    """What is wrong with a row or with a value in it."""

    code: str
    message: str


@dataclass
class Manifest:
    """`name` as messages tell it; `field` of the config; `starts`: folders below the root that its names may be
    relative to."""

    name: str
    rows: list[tuple[int, dict | Bad]]
    field: str
    starts: tuple[str, ...] = ("",)
    keys: list[str] = dataclasses.field(default_factory=list)  # of all rows, in the order they come

    def __post_init__(self):
        self.keys = list(dict.fromkeys(key for _, row in self.rows if isinstance(row, dict) for key in row))

    def where(self, line: int) -> str:
        return f"{posixpath.basename(self.name)}:{line}"


def parse(data: bytes, name: str, encoding: str) -> list[tuple[int, dict | Bad]]:
    """(line, row) of a manifest; a line that is no row comes as `Bad`. Raises MediaError where nothing can be read."""
    if delimiters := _TABLES.get(posixpath.splitext(name)[1].lower()):
        return list(_table(data, delimiters, encoding))
    rows: list[tuple[int, dict | Bad]] = []
    for number, (line, line_encoding) in enumerate(encodings.lines(iter([data]), _ROW_BYTES, encoding), 1):
        if line and line.strip():
            try:
                rows.append((number, parse_row(line, line_encoding)))
            except MediaError as error:
                rows.append((number, Bad(error.code, error.message)))
    return rows


def _table(data: bytes, delimiters: str, encoding: str) -> Iterator[tuple[int, dict | Bad]]:
    encoding, skip = encodings.by_mark(data, encoding)
    try:
        # Bytes that are wrong become lone surrogates, which cost their row and no other.
        text = data[skip:].decode(encoding, "surrogateescape")
    except UnicodeError as error:
        raise encodings.undecodable(error, encoding, skip, len(data)) from None
    head = re.sub(r'"[^"]*"', "", text.split("\n", 1)[0])
    delimiter = max(delimiters, key=head.count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    columns: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, Bad("bad_manifest_row", str(error))
            continue
        if columns is None:
            columns = [cell.strip() for cell in cells]
        elif len(cells) > len(columns):
            yield line, Bad("bad_manifest_row", f"{len(cells)} columns, the first line names {len(columns)}")
        elif not all(map(encodable, cells)):
            yield line, Bad("invalid_utf8" if encoding == "utf-8" else "invalid_encoding", f"not {encoding}")
        elif any(cells):
            yield line, {column: _cell(cell) for column, cell in zip(columns, cells, strict=False) if column and cell}


def _cell(cell: str) -> Any:
    """A table's cell; one that holds a JSON list of texts stands for them."""
    if cell.startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return value
    return cell


def parse_row(line: bytes, encoding: str = "utf-8") -> dict:
    """A JSON object out of one line; MediaError with the reason for anything else."""
    try:
        row = json.loads(line.decode(encoding))
    except UnicodeError as error:
        raise MediaError("invalid_json", encodings.undecodable(error, encoding).message) from None
    except RecursionError:
        raise MediaError("invalid_json", "nested too deep") from None
    except ValueError as error:
        raise MediaError("invalid_json", str(error)) from None
    if not isinstance(row, dict):
        raise MediaError("invalid_json", f"expected an object, got {type(row).__name__}")
    if line.count(b"[") + line.count(b"{") > _DEEPEST and _depth(row) > _DEEPEST:
        raise MediaError("invalid_json", f"nested too deep: more than {_DEEPEST} levels")
    return row


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


# ---- fields ----


def file_field(manifest: Manifest, given: str | None, names: Names) -> str | None:
    """The field that names the file: the given one, else the known one that the rows have; None without any.

    Of several, the one whose values are files of the folder. InputError where that leaves a choice, or where no row
    has the given one.
    """
    if given:
        return _given(manifest, given, "file_field")
    known = _known(manifest.keys, FILE_FIELDS)
    found = (
        [
            key
            for key in known
            if any(names.find(row.get(key), manifest.starts) for _, row in manifest.rows if isinstance(row, dict))
        ]
        if len(known) > 1
        else known
    )
    if len(found) > 1 and not _equal(manifest, found):
        raise InputError(
            f"{manifest.name}: {' and '.join(map(repr, found))} both name files; set captions.file_field "
            f"to one of them (the keys are {', '.join(manifest.keys)})",
            field=manifest.field,
        )
    return (found or known or [None])[0]


def caption_field(manifest: Manifest, captions: Captions) -> str | None:
    """The field of the captions, as `file_field`; None where the rows have labels or meta alone."""
    if captions.caption_field:
        return _given(manifest, captions.caption_field, "caption_field")
    found = _captions_of(manifest.keys)
    if len(found) > 1 and not _equal(manifest, found):
        raise InputError(
            f"{manifest.name}: {' and '.join(map(repr, found))} may both be captions; set "
            f"captions.caption_field to one of them (the keys are {', '.join(manifest.keys)})",
            field=manifest.field,
        )
    others = [captions.label_field, captions.license_field, *captions.meta_fields]
    if not found and not any(key in manifest.keys for key in others):
        raise InputError(
            f"{manifest.name}: no row has a caption; its keys are {', '.join(manifest.keys)}; set "
            "captions.caption_field to the one of captions",
            field=manifest.field,
        )
    return found[0] if found else None


def names_files(manifest: Manifest) -> bool:
    """Whether a manifest that nobody configured is one of files and what is on them."""
    return bool(_known(manifest.keys, FILE_FIELDS)) and bool(
        _captions_of(manifest.keys) or DEFAULTS.label_field in manifest.keys
    )


def row_caption(row: dict, given: str | None) -> tuple[str | None, Bad | None]:
    """The field of one row's caption where rows come one by one: the given one, else the known one that it has."""
    found = [given] if given else _captions_of(row)
    if len(found) > 1:
        return None, Bad("bad_caption", f"{' and '.join(map(repr, found))} may both be captions; set caption_field")
    return (found[0] if found else None), None


def check_fields(manifest: Manifest, captions: Captions) -> None:
    """InputError for a field that was asked for and that no row has."""
    for name in ("label_field", "license_field", "group_field"):
        if (key := getattr(captions, name)) and key != getattr(DEFAULTS, name):
            _given(manifest, key, name)
    for key in captions.meta_fields:
        _given(manifest, key, "meta_fields")


def _given(manifest: Manifest, key: str, name: str) -> str:
    if key not in manifest.keys:
        raise InputError(
            f"{manifest.name}: no row has {key!r}; its keys are {', '.join(manifest.keys)}",
            field=f"{manifest.field.removesuffix('.manifest')}.{name}",
        )
    return key


def _captions_of(keys: Iterable[str]) -> list[str]:
    return next((found for tier in CAPTION_FIELDS if (found := _known(keys, tier))), [])


def _known(keys: Iterable[str], names: tuple[str, ...]) -> list[str]:
    return [key for key in keys if key.lower() in names]


def _equal(manifest: Manifest, keys: list[str]) -> bool:
    return all(row.get(key) == row.get(keys[0]) for _, row in manifest.rows if isinstance(row, dict) for key in keys)


# ---- names ----


class Names:
    """The files below a root, found by what a manifest calls them."""

    def __init__(self, root: Root, paths: Iterable[str]):
        self.root, self.paths = root, set(paths)
        self.composed: dict[str, list[str]] = {}
        for path in self.paths:
            self.composed.setdefault(unicodedata.normalize("NFC", path), []).append(path)

    def find(self, name: Any, starts: Iterable[str] = ("",)) -> str | None:
        """The path below the root of a name that is absolute or relative to one of the folders `starts`; None where
        there is no such file. Accents may be composed otherwise, and folders parted by backslashes.
        """
        if not isinstance(name, str) or not name:
            return None
        inside = self.root.relative(name) if name.startswith("/") or "://" in name else None
        for spelt in (inside,) if inside else (name, name.replace("\\", "/")):
            for start in dict.fromkeys(starts):
                path = normal_path(posixpath.join(start, spelt.lstrip("/")), "/")
                if path in self.paths:
                    return path
                if path and len(found := self.composed.get(unicodedata.normalize("NFC", path), [])) == 1:
                    return found[0]
        return None


def normal_path(path: str, separators: str = "/\\") -> str | None:
    """A path below the root in normal form; None for one that leaves it (`..`, absolute, NUL, no UTF-8)."""
    clean = posixpath.normpath(path.replace("\\", "/") if "\\" in separators else path)
    if clean.startswith(("/", "../")) or clean in ("..", ".") or "\0" in clean or not encodable(clean):
        return None
    return clean


# ---- values ----


def facts(row: dict, captions: Captions, caption: str | None) -> tuple[dict, list[Bad]]:
    """What a row says of its file, and what of it cannot be used."""
    found: dict[str, Any] = {}
    texts, bad = caption_texts(row.get(caption) if caption else None, caption or "")
    if texts:
        found["captions"] = texts
    for key, name in (
        ("label", captions.label_field),
        ("license", captions.license_field),
        ("group", captions.group_field),
    ):
        value, problem = short_text(row.get(name) if name else None, name or "")
        bad += [problem] if problem else []
        if value is not None:
            found[key] = value
    if meta := {name: row[name] for name in captions.meta_fields if name in row}:
        found["meta"] = meta
    if marked(row):
        found["synthetic"] = True
    return found, bad


def caption_texts(value: Any, name: str) -> tuple[list[str], list[Bad]]:
    """A caption or a list of captions without blank and repeated ones, and what cannot be one."""
    texts: list[str] = []
    bad: list[Bad] = []
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and encodable(text) and "\0" not in text:
            if (text := text.strip()) and text not in texts:
                texts.append(text)
        elif text is not None:
            bad.append(Bad("bad_caption", f"{name}: expected text, got {text!a:.80}"))
    return texts, bad


def short_text(value: Any, name: str) -> tuple[str | None, Bad | None]:
    """A label, a license, a title: text, or a number, which stands for a class; None for an empty one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is None or value == "":
        return None, None
    if not isinstance(value, str) or not encodable(value) or "\0" in value:
        return None, Bad("bad_manifest_row", f"{name}: expected text, got {value!a:.80}")
    return value.strip() or None, None


def fill(template: str, row: dict) -> str:
    """`template` with each {field} replaced by the row's value; ValueError where one is missing or no scalar."""

    def value(match) -> str:
        found = row.get(match.group(1))
        if not isinstance(found, str | int | float) or isinstance(found, bool):
            raise ValueError(f"{match.group(1)}: expected text or a number, got {found!r:.80}")
        return str(found)

    return PLACEHOLDER.sub(value, template)


def marked(row: dict) -> bool:
    """Whether a manifest row says that a model of this project made the sample."""
    return row.get("synthetic") is True or "omniloom" in row


DEFAULTS = Captions(from_="file")  # the fields of a manifest that nobody configured
