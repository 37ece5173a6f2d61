"""Companions: files of which each is about one media file, or about the few of one folder.

In: texts by path. Out: `Pairing`s of three kinds:
    beside   of the media file's name, in whichever folder; `7.en.txt` is of 7.png too
    folders  called alike in folders of few media files: item_7/description.txt is of what lies in item_7
    cards    documents that name their media file in one of their fields, such as pages with front matter
A companion is a text, or a document whose fields are searched for captions: JSON, YAML, XML, XMP, front matter.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from omniloom.stages.ingest.files.suffixes import suffix
from omniloom.stages.ingest.look import markup, xmp
from omniloom.stages.ingest.look.loose_rows import flat, yaml_document
from omniloom.stages.ingest.look.media_names import MediaNames
from omniloom.stages.ingest.look.said import Pairing, caption_column, texts_of
from omniloom.stages.ingest.look.tables import rows_said

_PAGES = (".md", ".markdown")
_TEXTS = (".txt", ".caption", ".cap", ".text", ".tags", ".prompt", *_PAGES)
_DOCUMENTS = (".json", ".xml", ".xmp", ".yaml", ".yml")
SUFFIXES = (*_TEXTS, *_DOCUMENTS)
_DOCUMENT_CHARACTERS = 1 << 22  # more than that is about many files
_NAMES = 3  # of companions in folders that are tried, the most frequent
_IN_FOLDER = 8  # media files, on average, that a companion of a folder is about
_LANGUAGE = re.compile(r"[._](caption|[a-z]{2,3}(-[A-Za-z]{2,4})?)$")  # behind a stem: 7.en.txt
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n(?:---|\.\.\.)[ \t]*(?:\r?\n|$)(.*)", re.DOTALL)


def companions(names: MediaNames, media: Sequence[str], texts: Mapping[str, str]) -> list[Pairing]:
    rows = {path: row for path, text in texts.items() if (row := _document(path, text)) is not None}
    plain = {path: text for path, text in texts.items() if path not in rows and suffix(path) in _TEXTS}
    found = _beside(names, rows, plain)
    ways = [found, *(_in_folders(names, media, name, rows, plain) for name in _called_alike(rows, plain))]
    return [way for way in ways if way] + _cards(names, rows)


def _document(path: str, text: str) -> dict[str, Any] | None:
    """The fields of a document; None of a text, and of what is about many files."""
    if len(text) > _DOCUMENT_CHARACTERS:
        return None
    if suffix(path) == ".xmp":
        return {"description": xmp.description(text)}
    if suffix(path) == ".xml":
        return markup.document(text)
    found: Any = None
    if suffix(path) == ".json":
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
    elif suffix(path) in (".yaml", ".yml"):
        found = yaml_document(text)
    elif suffix(path) in _TEXTS and (front := _FRONT.match(text)):
        found = yaml_document(front[1])
        found = {**found, "body": front[2]} if isinstance(found, dict) else None
    return flat(found) if isinstance(found, dict) else None


# ---- by name, by folder ----


def _beside(names: MediaNames, rows: Mapping[str, dict[str, Any]], plain: Mapping[str, str]) -> Pairing | None:
    whose: dict[str, list[str]] = {}
    for path in (*plain, *rows):
        stem = posixpath.splitext(path)[0]
        if about := names.find(stem) or names.find(_LANGUAGE.sub("", stem)):
            whose[path] = [about]
    return _said(names, whose, rows, plain, "of the same names")


def _called_alike(rows: Mapping[str, Any], plain: Mapping[str, str]) -> list[str]:
    """Names that several folders have a companion of."""
    count = Counter(posixpath.basename(path) for path in (*plain, *rows) if "/" in path)
    return [name for name, folders in count.most_common(_NAMES) if folders > 1]


def _in_folders(
    names: MediaNames, media: Sequence[str], name: str, rows: Mapping[str, dict[str, Any]], plain: Mapping[str, str]
) -> Pairing | None:
    """What files called `name` say of the media files in their folder, or in folders within it."""
    whose: dict[str, list[str]] = defaultdict(list)
    for path in media:
        folder = posixpath.dirname(path)
        while folder:
            companion = f"{folder}/{name}"
            if companion in rows or companion in plain:
                whose[companion].append(path)
                break
            folder = posixpath.dirname(folder)
    if sum(map(len, whose.values())) > _IN_FOLDER * len(whose):
        return None
    found = _said(names, whose, rows, plain, f"in the pictures' folders, {name}")
    said = {tuple(texts) for texts in found.captions.values()} if found else set()
    return found if len(said) > 0.5 * len(whose) else None  # a licence is no caption


def _said(
    names: MediaNames,
    whose: Mapping[str, Sequence[str]],
    rows: Mapping[str, dict[str, Any]],
    plain: Mapping[str, str],
    where: str,
) -> Pairing | None:
    """What companions say of the media files that they are about, by the companion's path."""
    column = caption_column([rows[path] for path in whose if path in rows], names)
    found: dict[str, list[str]] = defaultdict(list)
    used = set[str]()
    for path, about in whose.items():
        if path in rows:
            texts = texts_of(rows[path].get(column)) if column else []
        else:
            texts = [plain[path].strip()] if any(map(str.isalpha, plain[path])) else []  # boxes of a detector
        if texts:
            used.add(path)
            for media in about:
                found[media] += texts
    what = "documents" if column else "texts"
    return Pairing(dict(found), frozenset(used), f"{what} {where}") if found else None


# ---- cards ----


def _cards(names: MediaNames, rows: Mapping[str, dict[str, Any]]) -> list[Pairing]:
    """Of documents with one ending, of which each names a media file, what they say of it."""
    alike: dict[str, list[str]] = defaultdict(list)
    for path in rows:
        alike[suffix(path)].append(path)
    ways = []
    for ending, paths in alike.items():
        if found := rows_said(names, [posixpath.dirname(path) for path in paths], [rows[path] for path in paths], 2):
            captions, shown = found
            ways.append(Pairing(captions, frozenset(paths), f"{len(paths)} documents {ending} ({shown})"))
    return ways
