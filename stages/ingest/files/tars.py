"""Tars, read by their headers: which members there are, and where their bytes lie.

In: a file that can seek, or a stream that goes forward alone. Out: `Member`s in the order of the file, and `Damage` for
what is none: after it the next header is looked for, so that a damaged member costs no other. Names of any length are
read (pax, GNU); several tars that were joined are one. Nothing is ever unpacked.

Source: POSIX.1-1988 ustar and POSIX.1-2001 pax (pubs.opengroup.org, "pax - portable archive interchange").
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BLOCK = 512
_CHUNK = 1 << 20
_MAGIC, _MAGIC_AT = b"ustar", 257
_EXTENSION_BYTES = 1 << 20  # of a name or of pax fields, at most
_LOOKBACK = 1 << 16  # bytes in which the extension headers of a member lie, before its own


@dataclass(frozen=True)
class Member:
    """`position`: of its first header, that of a long name included; `offset` and `size`: of its bytes. `type`: file,
    folder, hard link, symbolic link, or what it is besides."""

    name: str
    position: int
    offset: int
    size: int
    type: str
    link: str = ""


@dataclass(frozen=True)
class Damage:
    position: int
    code: str  # truncated or corrupt
    message: str


class Forward(io.RawIOBase):
    """Blocks of bytes as a file that can be read, and sought forward."""

    def __init__(self, blocks: Iterator[bytes]):
        super().__init__()
        self._blocks, self._left, self._at = blocks, b"", 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset < self._at:
            raise io.UnsupportedOperation("goes forward alone")
        while self._at < offset and self.read(min(_CHUNK, offset - self._at)):
            pass
        return self._at

    def read(self, size: int = -1) -> bytes:
        parts, missing = [], size
        while missing and (self._left or self._next()):
            part = self._left if missing < 0 else self._left[:missing]
            self._left = self._left[len(part) :]
            parts.append(part)
            missing -= len(part) if missing > 0 else 0
        data = b"".join(parts)
        self._at += len(data)
        return data

    def _next(self) -> bool:
        self._left = next(self._blocks, b"")
        return bool(self._left)


def members(file: Any, start: int = 0) -> Iterator[Member | Damage]:
    """The members whose headers lie at `start`, where one is, or behind it. The caller may move the file meanwhile."""
    position, first = start, None
    extended: dict[str, str] = {}
    while True:
        header = _at(file, position, BLOCK)
        if len(header) < BLOCK:
            if header or first is not None:
                yield Damage(position, "truncated", "ends within a header")
            return
        if not any(header):
            position += BLOCK  # between tars that were joined, and at the end
            continue
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            yield Damage(position, "corrupt", f"no header of a tar at byte {position}: {error}")
            found = find_header(file, position + BLOCK) if file.seekable() else None
            if found is None:
                return
            position, first, extended = found, None, {}
            continue
        first = position if first is None else first
        data = position + BLOCK
        if info.type in (b"x", b"X", b"g", b"L", b"K"):
            content = _at(file, data, min(info.size, _EXTENSION_BYTES))
            extended |= _extension(info.type, content)
            position = data + _padded(info.size)
            continue
        size = int(extended.get("size", info.size))
        sparse = any(key.startswith("GNU.sparse") for key in extended)
        yield Member(
            name=extended.get("path", info.name),
            position=first,
            offset=data,
            size=size,
            type="sparse file" if sparse else _TYPES.get(info.type, "file"),
            link=extended.get("linkpath", info.linkname),
        )
        holds = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        position, first, extended = data + (_padded(size) if holds else 0), None, {}


def members_from(file: Any, at: int) -> Iterator[Member | Damage]:
    """The members whose first header lies at byte `at` or behind it, wherever that is in the file. A tar within the tar
    that begins just before it is taken for a part of it."""
    start = find_header(file, max(0, at - _LOOKBACK) // BLOCK * BLOCK) if at else 0
    if start is not None:
        yield from (member for member in members(file, start) if member.position >= at)


def content(file: Any, member: Member) -> bytes | None:
    """A member's bytes; None where the tar ends before."""
    data = _at(file, member.offset, member.size)
    return data if len(data) == member.size else None


def find_header(file: Any, at: int) -> int | None:
    """Where the next header lies at or behind byte `at`, which is one where a header may begin."""
    while chunk := _at(file, at, _CHUNK):
        found = chunk.find(_MAGIC, _MAGIC_AT)
        while found >= 0:
            start = found - _MAGIC_AT
            if start % BLOCK == 0 and len(header := chunk[start : start + BLOCK]) == BLOCK:
                try:
                    tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
                    return at + start
                except tarfile.HeaderError:
                    pass
            found = chunk.find(_MAGIC, found + 1)
        at += _CHUNK
    return None


_TYPES = {
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.DIRTYPE: "folder",
    tarfile.FIFOTYPE: "FIFO",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}


def _at(file: Any, position: int, size: int) -> bytes:
    file.seek(position)
    data = file.read(size)
    while len(data) < size and (more := file.read(size - len(data))):
        data += more
    return data


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _extension(type: bytes, data: bytes) -> dict[str, str]:
    """What an extension header says of the member behind it."""
    if type == b"L":
        return {"path": _text(data)}
    if type == b"K":
        return {"linkpath": _text(data)}
    return _pax(data) if type in (b"x", b"X") else {}  # what g says of all members is nothing that is read here


def _pax(data: bytes) -> dict[str, str]:
    """Records of "LENGTH KEY=VALUE\\n"."""
    fields: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 20].partition(b" ")
        if not space or not digits.isdigit() or int(digits) <= len(digits) + 1:
            break
        key, _, value = data[at + len(digits) + 1 : at + int(digits) - 1].partition(b"=")
        if key in (b"path", b"linkpath") or key.startswith(b"GNU.sparse") or (key == b"size" and value.isdigit()):
            fields[key.decode("utf-8", "replace")] = _text(value)
        at += int(digits)
    return fields


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
