"""Looking: what lies below a URI, and the sources of a config that read it, before any config is written.

In: a URI. Out: a `Look`: how many files of which suffix, and for each source that is proposed how much there is of it,
records of a few items with their captions, and what of these cannot be used and why.

The kinds are asked one after the other (`SourceKind.recognize`): the surest takes its files, the others look again at
what is left. Where a source would read files of another, `include` or `exclude` parts them.
"""

from __future__ import annotations

import glob
import posixpath
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pydantic import ValidationError

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.ingest import sources
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.glimpse import Glimpse
from omniloom.stages.ingest.kinds.table import KINDS, open_source
from omniloom.stages.ingest.listing import SourceFile, list_files
from omniloom.stages.ingest.options import SourceConfig
from omniloom.stages.ingest.readers import Reader
from omniloom.stages.ingest.recognition import surest
from omniloom.stages.ingest.roots import Root
from omniloom.stages.ingest.suffixes import suffix

_OF_ONE_ITEM = 20  # records of an item that holds many, so that one large file is not all that is looked at
_DEPTHS = 4  # how many folders a pattern may begin with, less one


@dataclass
class Proposed:
    """A source as the config would have it, and what was seen of it."""

    options: dict[str, Any]
    makes: str  # image, video, text or document
    items: int = 0
    size: int = 0
    looked_at: int = 0  # items
    records: int = 0  # of those
    captioned: int = 0
    samples: list[dict] = field(default_factory=list)
    rejects: dict[str, int] = field(default_factory=dict)  # by code
    reasons: dict[str, str] = field(default_factory=dict)  # code -> path and message of the first
    problem: str | None = None


@dataclass
class Look:
    uri: str
    files: int
    size: int
    suffixes: dict[str, int]  # files by suffix, the most first
    unread: dict[str, int]  # likewise, of files that no source reads
    refused: dict[str, int]  # files by the reason why they cannot be looked at
    sources: list[Proposed]


def look(uri: str, items: int = 100, seconds: float = 15.0, samples: int = 3) -> Look:
    """Look at what lies at `uri`. Of each source at most `items` are read, for about `seconds` at most. InputError
    where there is nothing."""
    root = Root(SourceConfig(kind="any", uri=uri), 0)
    files = list(list_files(root))
    proposed, unread = _sources(root, files)
    for source in proposed:
        _examine(source, items, seconds, samples)
    return Look(
        uri=root.place,
        files=len(files),
        size=sum(file.size for file in files),
        suffixes=_counted(suffix(file.path) or "no suffix" for file in files),
        unread=_counted(suffix(path) or "no suffix" for path in unread),
        refused=_counted(f"{file.reject[0]}: {file.reject[1]}" for file in files if file.reject),
        sources=proposed,
    )


def _counted(names: Iterable[str]) -> dict[str, int]:
    """How often each occurs, the most frequent first."""
    return dict(sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0])))


# ---- which sources ----


def _sources(root: Root, files: Iterable[SourceFile]) -> tuple[list[Proposed], list[str]]:
    """The sources that read what is there, and the paths that none has a use for."""
    glimpse = Glimpse(root, files)
    proposed: list[Proposed] = []
    while found := surest(glimpse):
        name, recognition = found
        options = {"kind": name, "uri": _below(root, recognition.below), **recognition.options}
        if not root.is_file and not (root.is_archive and KINDS[name].reads_archives):
            start = f"{recognition.below}/" if recognition.below else ""
            below = [file.path.removeprefix(start) for file in files if file.path.startswith(start)]
            options |= _parted(options, {path.removeprefix(start) for path in recognition.paths}, below)
        proposed.append(Proposed(options, KINDS[name].makes(_config(options).sources[0])))
        glimpse = glimpse.without(recognition.paths)
    return proposed, glimpse.paths


def _below(root: Root, folder: str) -> str:
    return storage.join(root.place, folder) if folder else root.place


def _config(*sources: dict[str, Any]) -> Config:
    try:
        return Config.model_validate({"sources": list(sources)})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"kind {sources[0]['kind']} was recognized by options that it refuses: {first['msg']}"
        ) from None


def _parted(options: dict[str, Any], mine: set[str], paths: list[str]) -> dict[str, list[str]]:
    """The `include` or `exclude` without which the source would read others of the `paths` than its own."""
    kind = open_source(_config(options).sources[0], 0)
    read = [path for path in paths if kind.is_item(path)]
    own = [path for path in read if path in mine]
    if own == read or not own:
        return {}
    ways = [_patterns(own, depth) for depth in range(_DEPTHS)]
    for patterns in ways:
        if not set(patterns).intersection(own) and not _taken(options, patterns, paths) - set(own):
            return {"include": patterns}
    others = set(read) - set(own)
    if len(others) <= len(own) and all(suffix(path) in kind.suffixes for path in others):
        return {"exclude": [glob.escape(path) for path in sorted(others)]}
    wrong = _taken(options, ways[0], paths) - set(own)
    if len(wrong) <= len(own):
        return {"include": ways[0], "exclude": [glob.escape(path) for path in sorted(wrong)]}
    return {"include": [glob.escape(path) for path in own]}


def _taken(options: dict[str, Any], patterns: list[str], paths: list[str]) -> set[str]:
    kind = open_source(_config(options | {"include": patterns}).sources[0], 0)
    return {path for path in paths if kind.is_item(path)}


def _patterns(paths: list[str], depth: int) -> list[str]:
    """Patterns such as *.jpg, or a/b/*.jpg with so many folders, as the suffixes are spelt: globs know large letters
    from small ones. A file that lies less deep is told by its path."""
    return sorted({_pattern(path, depth) for path in paths})


def _pattern(path: str, depth: int) -> str:
    folders = path.split("/")[:-1]
    if len(folders) < depth:
        return glob.escape(path)
    return glob.escape("".join(f"{folder}/" for folder in folders[:depth])) + f"*{glob.escape(_ending(path))}"


def _ending(path: str) -> str:
    name = posixpath.basename(path)
    return name[name.rindex(".") :] if "." in name else name


# ---- what is in them ----


def _examine(source: Proposed, items: int, seconds: float, samples: int) -> None:
    """Read a few items of the source, from all over it."""
    config = _config(source.options)
    try:
        found = list(sources.items(config))
    except InputError as error:
        source.problem = error.message
        return
    source.items, source.size = len(found), sum(item["size"] for item in found)
    chosen = found[:: max(1, -(-len(found) // items))]
    reader, until = Reader(config, 0), time.monotonic() + seconds
    for item in chosen:
        source.looked_at += 1
        for row in islice(reader.read(item), _OF_ONE_ITEM):
            _count(source, row, samples)
        if time.monotonic() > until:
            break


def _count(source: Proposed, row: dict, samples: int) -> None:
    if "code" in row:
        source.rejects[row["code"]] = source.rejects.get(row["code"], 0) + 1
        source.reasons.setdefault(row["code"], f"{row['path']}: {row['message']}")
        return
    source.records += 1
    source.captioned += bool(row.get("captions"))
    if len(source.samples) < samples:
        source.samples.append(_sample(row))


def _sample(row: dict) -> dict[str, Any]:
    """What a person is shown of a record."""
    shown = {key: row.get(key) for key in ("path", "part", "kind", "format", "width", "height", "duration", "label")}
    return {key: value for key, value in shown.items() if value is not None} | {
        "captions": row.get("captions") or [],
        "text": " ".join(_texts(row)),
    }


def _texts(row: dict) -> Iterator[str]:
    if row.get("text"):
        yield row["text"]
    for segment in row.get("segments") or ():
        yield segment["text"] if segment["type"] == "text" else "[image]"
