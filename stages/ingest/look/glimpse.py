"""What a source is recognized by, before any config says what it is: the names of its files, and a peek at few of them.

In: a root and its listing. Out: a `Glimpse`, which each kind's `SourceKind.recognize` looks at and answers with a
`Recognition`: the options with which the kind would read the source.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations import manifests
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.files.listing import SourceFile
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.files.suffixes import suffix

# How sure a recognition is. Of two kinds that could read the same files the surer one does.
BY_NAME = 1  # the files' suffixes are of the kind
BY_CONTENT = 2  # a file was looked into, and its fields or its structure are of the kind
BY_REFERENCE = 3  # a file that was looked into names, or goes with, other files that are there
BY_DOCUMENT = 4  # those other files are parts of what it holds, and mean little without it

HEAD_BYTES = 1 << 18  # of a file that is peeked at


@dataclass(frozen=True)
class Recognition:
    """That some files look like a kind of source.

    `paths`: of the files that would become records, or say something of records (captions beside pictures, pictures
    that rows name). `options`: of the kind's config, beside `kind` and `uri`. `below`: a folder of the root that has to
    be the source's `uri`, where names in its files go by that one.
    """

    paths: frozenset[str]
    options: dict[str, Any] = field(default_factory=dict)
    strength: int = BY_NAME
    below: str = ""


class Glimpse:
    """The readable files below a root, and the beginnings of those that are asked for."""

    def __init__(self, root: Root, files: Iterable[SourceFile]):
        self.root = root
        self.files = {file.path: file for file in files if not file.reject}
        self._heads: dict[str, bytes] = {}

    def without(self, paths: Collection[str]) -> Glimpse:
        """The same less some files."""
        rest = Glimpse(self.root, (file for path, file in self.files.items() if path not in paths))
        rest._heads = self._heads
        return rest

    @cached_property
    def paths(self) -> list[str]:
        """Of all files, below the root, sorted."""
        return list(self.files)

    @cached_property
    def by_suffix(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self.paths:
            found.setdefault(suffix(path), []).append(path)
        return found

    def having(self, suffixes: Iterable[str]) -> list[str]:
        """The paths with one of these suffixes (in small letters, with the dot)."""
        found = [self.by_suffix[ending] for ending in dict.fromkeys(suffixes) if ending in self.by_suffix]
        return sorted(chain(*found)) if len(found) > 1 else list(*found)

    def named(self, names: Iterable[str]) -> list[str]:
        """The paths of files that are called so, in any folder."""
        wanted = set(names)
        return [path for path in self.paths if posixpath.basename(path) in wanted]

    def head(self, path: str) -> bytes:
        """The first `HEAD_BYTES` of a file, or all of a smaller one; empty where it cannot be read."""
        if path not in self._heads:
            blocks = self.root.blocks(path)
            try:
                self._heads[path] = next(blocks, b"")[:HEAD_BYTES]
            except MediaError:
                self._heads[path] = b""
            finally:
                blocks.close()
        return self._heads[path]

    def text(self, path: str) -> str:
        """The text at a file's beginning; what is no UTF-8, and has no byte order mark, is replaced."""
        data = self.head(path)
        name, skip = encoding.by_mark(data, "utf-8")
        return data[skip:].decode(name, "replace")

    def speaks(self, path: str) -> bool:
        """Whether a text has letters: coordinates and numbers of classes, as beside pictures of detectors, say nothing
        to a reader."""
        return any(map(str.isalpha, self.text(path)))

    def rows(self, path: str, count: int = 20) -> list[dict]:
        """The first rows of JSON lines, or of a table (.csv, .tsv) by the names of its first line; [] where it has
        none."""
        data = self.head(path)
        if len(data) == HEAD_BYTES:
            data = data[: data.rfind(b"\n") + 1]  # the last line goes on beyond
        try:
            rows = manifests.parse(data, path, "utf-8")
        except MediaError:
            return []
        return [row for _, row in rows if isinstance(row, dict)][:count]
