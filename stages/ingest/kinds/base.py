"""What a kind of source is: `SourceKind`, one small class that plans and reads; and what its `items` are given."""

from __future__ import annotations

import fnmatch
import typing
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from omniloom.stages.data.media.limits import DEFAULT_LIMITS, Limits
from omniloom.stages.ingest.annotations.manifests import ManifestFile
from omniloom.stages.ingest.files.listing import Files, SourceFile
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.files.suffixes import suffix
from omniloom.stages.ingest.look.glimpse import Glimpse, Recognition
from omniloom.stages.ingest.options import UNNAMED, Captions, SourceConfig
from omniloom.stages.ingest.rejects import Reject, printable
from omniloom.stages.ingest.text_runs import Texts


@dataclass(frozen=True)
class Contents:
    """What a source holds: all files, sorted by path, and those among them that are of the source's kind. There may be
    millions: iterate, and hold no list of them that is not needed."""

    files: Files
    of_kind: Files


class SourceKind(ABC):
    """One kind of source. An object is one source of a config: `config` are its options, `index` is its number.

    A kind has to have `Config`, `suffixes`, `makes` and `read`; all else has a default that fits files which are
    read one by one. What `read` needs of weight (decoders, parsers) it imports itself: every plan imports this class.
    """

    # The options: a `SourceConfig` with `kind: Literal["name"]`, a docstring under each field.
    Config: ClassVar[type[SourceConfig]]
    # Of the files that are of this kind, the most usual first.
    suffixes: ClassVar[tuple[str, ...]]
    # All texts and documents of one file lie in one split, as chunks of a book must; not so where each is on its own.
    one_file_one_split: ClassVar[bool] = True
    # Whether a zip or a tar is a file of this kind; to all others it is the folder that it would unpack to.
    reads_archives: ClassVar[bool] = False
    # Whether reading goes out to the web: `look` proposes it where nothing else is to be read.
    fetches: ClassVar[bool] = False
    # Options without which the kind cannot be used, as `recognize` offers them by default: {"text_field": "text"}.
    usual_options: ClassVar[dict[str, Any]] = {}
    # The fields of manifests that the config does not name, such as metadata.jsonl.
    metadata_fields: Captions = UNNAMED

    def __init__(self, config: Any, index: int, limits: Limits = DEFAULT_LIMITS, chunk_chars: int = 2000):
        self.config, self.index, self.limits, self.chunk_chars = config, index, limits, chunk_chars
        self.root = Root(config, index, opens_archives=not self.reads_archives)
        self.field = self.root.field

    @classmethod
    def name(cls) -> str:
        return typing.get_args(cls.Config.model_fields["kind"].annotation)[0]

    @classmethod
    @abstractmethod
    def makes(cls, config: Any) -> str:
        """Which of `records.KINDS` (image, video, text, document) a source with these options gives."""

    # ---- recognition: what files of this kind look like, where no config says it ----

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """The options with which a source that looks like this kind would be read; None where it does not. A kind that
        can tell more than by suffixes looks into a few files, and gives a larger `strength`."""
        paths = glimpse.having(cls.suffixes)
        return Recognition(frozenset(paths), cls.usual_options) if paths else None

    # ---- planning: from names and small files alone, on every plan ----

    @cached_property
    def manifest(self) -> ManifestFile | None:
        """The manifest that the config names, which may lie outside the root."""
        return None

    @property
    def names_files(self) -> bool:
        """Whether what the files say may name any other file of the folder: then each of those counts."""
        return False

    @cached_property
    def media_root(self) -> Root | None:
        """Where files may be named besides the root: the option of that name, or the folder of the one file that the
        source is. To be asked for once `root.is_file` is known."""
        if not self.names_files:
            return None
        if self.config.media_root:
            return Root(self.config, self.index, self.config.media_root, "media_root")
        folder = self.root.place[: self.root.place.rindex("/") + 1]
        return Root(self.config, self.index, folder) if self.root.is_file else None

    def is_item(self, path: str) -> bool:
        """Whether the file at this path below the root is of this kind."""
        return self.selected(path) and (bool(self.config.include) or suffix(path) in self.suffixes)

    def matters(self, path: str) -> bool:
        """Whether a file that is none of the kind can change the records: then a change of it is a change of the
        source."""
        return self.names_files or (self.manifest is not None and path == self.manifest.below)

    def holds_some(self, contents: Contents) -> bool:
        """Whether there is anything to read; a source without is refused."""
        if self.root.is_file or self.config.include:
            return bool(contents.of_kind)
        return any(suffix(file.path) in self.suffixes for file in contents.of_kind)

    def check(self, contents: Contents) -> None:
        """What can be told to be wrong before anything is read: raise `InputError` with a field below `self.field`."""
        return None

    def items(self, contents: Contents, notes: Counter) -> Iterable[dict]:
        """What is to be read, in order, each a dictionary that JSON can hold, made by `item` or `rejected`; `read`
        gets one of them. `notes` counts what a person should be told."""
        return map(self.item, contents.of_kind)

    def cut(self, item: dict, size: int, count: int) -> Iterator[dict]:
        """The pieces of a large item, which are read side by side, in order: each of about `size` bytes and, where an
        item names files or holds many small things, `count` records.

        A piece is the item with "from" and "to" in the kind's own unit (bytes of a file of JSON lines, row groups of a
        Parquet file), the "part" that its first record has, its own "size" and, as far as it is known, "rows", how many
        records it gives. `read` gives of a piece the records that begin in it: those of all pieces together are those
        of the item. What a piece holds may depend on `size` and `count`, what the records are may not.

        By default an item is one piece. It is called for every item when the work is planned, so look into large files
        alone; after an error the item is read in one piece, which tells of it.
        """
        yield item

    # ---- reading: one item, or a piece of one, in a worker ----

    @abstractmethod
    def read(self, item: dict) -> Iterator[dict | Texts | Reject]:
        """The records of one item, made by `stages.ingest.rows`, and what of it cannot be used. An exception is the
        item's reject, so raise `MediaError(code, message)` freely. Texts that are records by themselves may come many
        at a time."""

    # ---- for subclasses ----

    def item(self, file: SourceFile) -> dict:
        item = {"source": self.index, "path": file.path, "size": file.size, "identity": file.identity}
        return {**item, "reject": list(file.reject)} if file.reject else item

    def rejected(self, path: str, reject: Reject) -> dict:
        """In place of an item: what is known before it is read to be of no use."""
        return {
            "source": self.index,
            "path": printable(path),
            "size": 0,
            "reject": [reject.code, reject.message],
        }

    def content(self, path: str, size: int | None = None) -> bytes:
        """The bytes of a file below the root; MediaError where there are none, or more than the limit."""
        return self.root.read(path, self.limits.max_bytes, size)

    def selected(self, path: str) -> bool:
        """Whether `include` and `exclude` leave a path."""
        include = self.config.include
        if include and not any(_matches(path, pattern) for pattern in include):
            return False
        return not self.excluded(path)

    def excluded(self, path: str) -> bool:
        exclude = self.config.exclude
        return bool(exclude) and any(_matches(path, pattern) for pattern in exclude)


def _matches(path: str, pattern: str) -> bool:
    """Globs where `*` crosses folders and a leading `**/` may stand for none."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, pattern.removeprefix("**/"))
