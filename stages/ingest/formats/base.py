"""What a format of rows is: `Format`, which reads one kind of files row by row and holds no file whole."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from omniloom.stages.ingest.files.retrying import patiently
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.rejects import Reject

_HEAD_BYTES = 2 << 20  # of a file whose rows each have fields of their own
_HEAD_ROWS = 1000
SHORT_ROW = 32  # bytes of a row that names a file, at least
# Of the names of a file's columns, those that are read; None where a format gives all of a row at once.
Wanted = Callable[[Sequence[str]], list[str]]
Row = tuple[int, "dict | Reject"]  # its number in the file, from 1; what it holds, or why it is none


@dataclass
class Files:
    """Where a source's files lie, and how they are read: in which encoding, and up to how many bytes a row."""

    root: Root
    encoding: str
    max_bytes: int

    def blocks(self, item: dict) -> Iterator[bytes]:
        """The bytes of a file, or of the piece of it that an item is."""
        return self.root.blocks(item["path"], item.get("from", 0), item.get("to"))


@dataclass
class Heads(Files):
    """The same of the files' first bytes alone; `whole` tells afterwards whether those were all."""

    whole: bool = True

    def blocks(self, item: dict) -> Iterator[bytes]:
        size = 0
        for block in super().blocks(item):
            if size >= _HEAD_BYTES:
                self.whole = False
                return
            size += len(block)
            yield block


@dataclass(frozen=True)
class Peek:
    """The names of a file's columns, those of fields within fields with a dot between. `whole` says that no row has
    another: the file names them, or was read to its end. `table` says that every row has the same."""

    columns: list[str]
    whole: bool
    table: bool = True


class Format(ABC):
    """A format of files that hold rows. `rows` raises `MediaError` where a file is none of the format; what is wrong
    with one row is its reject."""

    suffixes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        """The rows of an item, which is a file or a part of one."""

    @abstractmethod
    def peek(self, files: Files, path: str) -> Peek:
        """The columns, from the file's head or foot."""

    def cut(self, files: Files, item: dict, size: int, count: int) -> Iterator[dict]:
        """The pieces of a large file, see `SourceKind.cut`; by default it is one. `rows` gets one of them, and gives
        its rows the numbers that they have in the file."""
        yield item


class SourceBytes(io.RawIOBase):
    """A file below a source's root as a stream that can seek. After a failure that passes it is opened again, and goes
    on where it was."""

    def __init__(self, files: Files, path: str):
        super().__init__()
        self._open = lambda: files.root.open(path)
        self._file = patiently(self._open)
        self._at = 0
        self._size = self._file.seek(0, io.SEEK_END)
        self._file.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        count = self._size - self._at if size is None or size < 0 else size
        data = patiently(lambda: self._once(count))
        self._at += len(data)
        return data

    def readinto(self, buffer) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _once(self, count: int) -> bytes:
        if self._file is None:
            self._file = self._open()
        try:
            self._file.seek(self._at)
            return self._file.read(count)
        except Exception:
            self._file = None
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


def peek_rows(known: Format, files: Files, path: str) -> Peek:
    """The fields of the rows of a file's head, where each row has fields of its own."""
    heads = Heads(files.root, files.encoding, files.max_bytes)
    names: dict[str, None] = {}
    for number, row in known.rows(heads, {"path": path}, list):
        if isinstance(row, dict):
            names |= dict.fromkeys(nested_names(row))
        if number >= _HEAD_ROWS:
            return Peek(list(names), False, False)
    return Peek(list(names), heads.whole, False)


def nested_names(row: dict, prefix: str = "", depth: int = 3) -> list[str]:
    """The names of a row's fields, and of fields within them: "a", "a.b"; a list counts as what it holds."""
    names = []
    for key, value in row.items():
        names.append(f"{prefix}{key}")
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, dict) and depth > 1:
            names += nested_names(inner, f"{prefix}{key}.", depth - 1)
    return names
