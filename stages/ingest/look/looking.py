"""Looking: what lies below a URI, and the sources of a config that read it, before any config is written.

In: a URI. Out: a `Look`: how many files of which suffix, and for each source that is proposed how much there is of it,
records of a few items with their captions, and what of these cannot be used and why.

The kinds are asked one after the other (`SourceKind.recognize`): the surest takes its files, the others look again at
what is left. A source of which nothing can be read is dismissed, and the next surest tried. Where a source would read
files of another, `include` or `exclude` parts them. Archives that are left are looked into as roots.
"""

from __future__ import annotations

import glob
import posixpath
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pydantic import ValidationError

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.ingest import sources
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.files.listing import SourceFile, list_files
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.files.suffixes import ARCHIVES, suffix
from omniloom.stages.ingest.kinds.table import KINDS, open_source
from omniloom.stages.ingest.look.glimpse import Glimpse, Recognition
from omniloom.stages.ingest.look.recognition import recognized
from omniloom.stages.ingest.options import SourceConfig
from omniloom.stages.ingest.readers import Reader

_OF_ONE_ITEM = 20  # records of an item that holds many, so that one large file is not all that is looked at
_DEPTHS = 4  # how many folders a pattern may begin with, less one


@dataclass
class Proposed:
    """A source as the config would have it, and what was seen of it."""

    options: dict[str, Any]
    makes: str = ""  # image, video, text or document
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
    refused: dict[str, int]  # files by the reason why they cannot be looked at
    unread: dict[str, int] = field(default_factory=dict)  # files by suffix that no source reads
    sources: list[Proposed] = field(default_factory=list)
    dismissed: list[Proposed] = field(default_factory=list)  # what files looked like, and were not


def look(
    uri: str, items: int = 100, seconds: float = 15.0, samples: int = 3, records_of_item: int = _OF_ONE_ITEM
) -> Look:
    """Look at what lies at `uri`. Of each source at most `items` are read, of each at most so many records, for about
    `seconds` at most. InputError where there is nothing."""
    root = Root(SourceConfig(kind="any", uri=uri), 0)
    files = list(list_files(root))
    seen = Look(
        uri=root.place,
        files=len(files),
        size=sum(file.size for file in files),
        suffixes=_counted(suffix(file.path) or "no suffix" for file in files),
        refused=_counted(f"{file.reject[0]}: {file.reject[1]}" for file in files if file.reject),
    )
    unread = _Looking(root, files, seen, _Bounds(items, seconds, samples, records_of_item)).propose()
    seen.unread = _counted(suffix(path) or "no suffix" for path in unread)
    return seen


def _counted(names: Iterable[str]) -> dict[str, int]:
    """How often each occurs, the most frequent first."""
    return dict(sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0])))


# ---- which sources ----


@dataclass(frozen=True)
class _Bounds:
    items: int
    seconds: float
    samples: int
    records_of_item: int


class _Looking:
    """Proposes sources for what one root holds, and adds them to `seen`."""

    def __init__(self, root: Root, files: Sequence[SourceFile], seen: Look, bounds: _Bounds):
        self.root, self.files, self.seen, self.bounds = root, files, seen, bounds

    def propose(self) -> list[str]:
        """The paths that no source has a use for."""
        glimpse = Glimpse(self.root, self.files)
        while taken := self._next(glimpse):
            glimpse = glimpse.without(taken)
        archives = [] if self.root.is_archive else [path for path in glimpse.having(ARCHIVES) if self._archive(path)]
        return glimpse.without(archives).paths

    def _next(self, glimpse: Glimpse) -> Collection[str]:
        """Propose the surest source that can read something; the paths that it takes, none where there is no such."""
        for name, recognition in recognized(glimpse):
            if KINDS[name].fetches and self.seen.sources:
                problem = f"{len(recognition.paths)} files name what lies on the web, and there are others to read"
                self.seen.dismissed.append(Proposed({"kind": name, "uri": self.root.place}, problem=problem))
                return recognition.paths
            source = self._proposed(name, recognition)
            if source.problem is None and source.records:
                self.seen.sources.append(source)
                return recognition.paths
            self.seen.dismissed.append(source)
        return ()

    def _proposed(self, name: str, recognition: Recognition) -> Proposed:
        options = {"kind": name, "uri": _below(self.root, recognition.below), **recognition.options}
        source = Proposed(options)
        try:
            if not self.root.is_file and not (self.root.is_archive and KINDS[name].reads_archives):
                start = f"{recognition.below}/" if recognition.below else ""
                files = (file for file in self.files if file.path.startswith(start) and not file.reject)
                below = [file.path.removeprefix(start) for file in files]
                options |= _parted(options, {path.removeprefix(start) for path in recognition.paths}, below)
            _examine(source, self.bounds)
        except InputError as error:
            source.problem = error.message
        return source

    def _archive(self, path: str) -> bool:
        """Whether there are sources for what an archive among the files holds."""
        root = Root(SourceConfig(kind="any", uri=_below(self.root, path)), 0)
        before = len(self.seen.sources)
        try:
            _Looking(root, list_files(root), self.seen, self.bounds).propose()
        except InputError as error:
            self.seen.dismissed.append(Proposed({"kind": "archive", "uri": root.place}, problem=error.message))
        return len(self.seen.sources) > before


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


def _examine(source: Proposed, bounds: _Bounds) -> None:
    """Read a few items of the source, from all over it; InputError where it cannot be planned."""
    config = _config(source.options)
    source.makes = KINDS[config.sources[0].kind].makes(config.sources[0])
    sources.listing(config)
    found = list(sources.items(config))
    source.items, source.size = len(found), sum(item["size"] for item in found)
    chosen = found[:: max(1, -(-len(found) // bounds.items))]
    reader, until = Reader(config, 0), time.monotonic() + bounds.seconds
    for item in chosen:
        source.looked_at += 1
        for row in islice(reader.read(item), bounds.records_of_item):
            _count(source, row, bounds.samples)
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
