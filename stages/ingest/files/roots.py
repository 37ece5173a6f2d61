"""Roots: the folder or file that a source names, on any filesystem, and the content of what lies below it.

In: a source of the config. Out: bytes, or `MediaError` with the reason. `listing` tells which files there are.

A zip or a tar is the folder that it would unpack to, see `archives`, unless who reads it reads archives. Braces in the
URI stand for several files.

Errors that pass are tried again. Nothing but regular files is ever opened: a FIFO would wait for ever. Symbolic links
are followed to what lies inside the root, and elsewhere where the source says `follow_links`.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import unicodedata
from collections.abc import Generator, Iterable
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import archives
from omniloom.stages.ingest.files.braces import expand, folder, has_braces
from omniloom.stages.ingest.files.compressed import decompressed
from omniloom.stages.ingest.files.paths import lies_in, type_of
from omniloom.stages.ingest.files.retrying import patiently, unreadable
from omniloom.stages.ingest.files.suffixes import ARCHIVES, compression, suffix
from omniloom.stages.ingest.options import SourceConfig

# The demo's corpus; loaded at first use.
fsspec.register_implementation("digits", "omniloom.stages.ingest.digits.DigitsFileSystem")

_BLOCK = 1 << 20
_FOLDERS = 4096  # whose real places are remembered


class Root:
    """A root, a folder, an archive or one file, on any filesystem; `uri_field` is where the config names it.

    `names`: below `place`, of the files that the root is, where braces in the URI stand for them; else None.
    """

    def __init__(
        self, source: SourceConfig, index: int, uri: str | None = None, name: str = "uri", opens_archives: bool = True
    ):
        self.source, self.index = source, index
        self.field = f"sources.{index}"
        self.uri_field = f"{self.field}.{name}"
        self.place = storage.absolute(uri or source.uri)
        self.names: list[str] | None = None
        try:
            self.fs, self.path = storage.filesystem(self.place)
            if has_braces(self.place) and not self._holds("exists"):
                self.place, pattern = storage.absolute(folder(self.place)), self.place
                self.fs, self.path = storage.filesystem(self.place)
                self.names = expand(storage.absolute(pattern).removeprefix(self.place).lstrip("/"))
        except (ValueError, ImportError) as error:
            raise InputError(f"{uri or source.uri!r} cannot be opened: {error}", field=self.uri_field) from None
        self.local = isinstance(self.fs, LocalFileSystem)
        self.real = os.path.realpath(self.path) if self.local else self.path
        self.is_file = False
        self.asked: list[str] = []  # paths of files, there or not, that were to be read
        self.is_archive = opens_archives and suffix(self.path) in ARCHIVES and self._holds("isfile")
        if self.is_archive:
            self.fs, self.path = archives.opened(self.fs, self.path), ""
            self.local, self.real = False, self.place
        self._below = posixpath.join(self.path, "")
        self._names: dict[str, dict[str, list[str]]] = {}
        self._real_folders: dict[str, str] = {}

    def _holds(self, question: str) -> bool:
        """What the filesystem says of the path; not so where it cannot be asked, which whoever lists it tells."""
        try:
            return getattr(self.fs, question)(self.path)
        except Exception:
            return False

    def settle(self) -> None:
        """Find out whether the root is one file, where it has not been listed."""
        if self.names is None and not self.is_archive:
            self.is_file = patiently(lambda: self.fs.isfile(self.path))

    def uri(self, path: str) -> str:
        """The filesystem's own path of a file below the root."""
        if self.is_file:
            return self.path
        return posixpath.join(self.path, path) if path.startswith("/") else self._below + path

    # ---- content ----

    def read(self, path: str, limit: int | None = None, size: int | None = None) -> bytes:
        """The content of a file of at most `limit` bytes; its type and size are looked at before it is opened.

        `size` spares a remote filesystem the question. Raises MediaError, whatever the filesystem's own error was.
        """
        try:
            known = patiently(lambda: self._check(path, size))
            if limit and known and known > limit:
                raise MediaError("too_large", f"{known} bytes, at most {limit}")
            if compression(path):
                return _joined(self.blocks(path), limit)
            uri = self.uri(path)
            return patiently(lambda: _content(uri, known or 0) if self.local else storage.whole(self.fs, uri))
        except Exception as error:
            raise unreadable(error, path) from error

    def blocks(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        """The bytes from `start` to `stop` of a file block by block, of which none is empty; of a compressed file those
        of what it holds, for which all before them is read too."""
        ending = compression(path)
        if ending is None:
            yield from self.raw_blocks(path, start, stop)
            return
        at = 0
        with contextlib.closing(self.raw_blocks(path)) as raw:
            for block in decompressed(raw, ending):
                if data := block[max(0, start - at) : None if stop is None else max(0, stop - at)]:
                    yield data
                at += len(block)
                if stop is not None and at >= stop:
                    return

    def raw_blocks(self, path: str, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        """The bytes from `start` to `stop` of a file as they lie there, block by block; after a failure it goes on
        where it was."""
        file, at = None, start

        def block() -> bytes:
            nonlocal file
            if file is None:
                self._check(path)
                file = self.fs.open(self.uri(path), "rb")
                file.seek(at)
            try:
                return file.read(_BLOCK if stop is None else min(_BLOCK, stop - at))
            except Exception:
                file = None
                raise

        try:
            while data := patiently(block):
                at += len(data)
                yield data
        except Exception as error:
            raise unreadable(error, path) from error
        finally:
            if file:
                file.close()

    def open(self, path: str) -> Any:
        """A file as a stream of bytes that can seek; MediaError where it is none."""
        self._check(path)
        return self.fs.open(self.uri(path), "rb")

    def _check(self, path: str, size: int | None = None) -> int | None:
        """The size of a regular file inside the root; MediaError for anything else."""
        self.asked.append(path)
        if self.local:
            facts = self._facts(path)
            if not stat.S_ISREG(facts.st_mode):
                raise MediaError("not_a_file", f"{path[:200]} is a {type_of(facts.st_mode)}")
            return facts.st_size
        if size is not None:
            return size
        info = self.fs.info(self.uri(path))
        if "reject" in info:
            raise MediaError(*info["reject"])
        if info["type"] != "file":
            raise MediaError("not_a_file", f"{path[:200]} is a {info['type']}")
        return info.get("size")

    def _facts(self, path: str) -> os.stat_result:
        """What a local disk says of a file inside the root, asked once where no link is on the way."""
        if not self.is_file and not self.source.follow_links:
            folder, _, name = self.uri(path).rpartition("/")
            if name not in ("", ".", "..") and lies_in(real := self._real_folder(folder), self.real):
                facts = os.lstat(f"{real}/{name}")
                if not stat.S_ISLNK(facts.st_mode):
                    return facts
        if self.escapes(path):
            raise MediaError(
                "outside_root",
                f"{path[:200]} leads out of the source's root; {self.field}.follow_links: true follows links",
            )
        return os.stat(self.uri(path))

    def _real_folder(self, folder: str) -> str:
        if (real := self._real_folders.get(folder)) is None:
            if len(self._real_folders) > _FOLDERS:
                self._real_folders.clear()
            real = self._real_folders[folder] = os.path.realpath(folder)
        return real

    def escapes(self, path: str) -> bool:
        """True where a symbolic link on the way leads out of the root and is not to be followed."""
        if self.is_file or not self.local or self.source.follow_links:
            return False
        folder, name = os.path.split(self.uri(path))
        place = os.path.join(self._real_folder(folder), name)
        if name in (".", "..") or os.path.islink(place):
            place = os.path.realpath(place)
        return not lies_in(place, self.real)

    # ---- names ----

    def relative(self, path: str) -> str | None:
        """The path below the root that an absolute path or a URI means; None where it means another place."""
        wanted = storage.absolute(path) if "://" in path or path.startswith("/") else path
        for root in (self.place, self.real):
            prefix = root.rstrip("/") + "/"
            if wanted.startswith(prefix):
                return wanted[len(prefix) :]
        return None

    def locate(self, path: str) -> str | None:
        """The path of what is there under this name with its accents composed otherwise; None where nothing is.

        macOS spells an accented letter as two characters, others as one.
        """
        found = ""
        for part in path.split("/"):
            names = self._composed(found).get(unicodedata.normalize("NFC", part), [])
            if part not in names and len(names) != 1:
                return None
            found = posixpath.join(found, part if part in names else names[0])
        return found

    def _composed(self, folder: str) -> dict[str, list[str]]:
        """Composed spelling -> names as they are, of what a folder below the root holds."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                for entry in patiently(lambda: self.fs.ls(self.uri(folder), detail=False)):
                    name = posixpath.basename(entry.rstrip("/"))
                    names.setdefault(unicodedata.normalize("NFC", name), []).append(name)
            except Exception:
                names = {}  # no folder, or one that cannot be read: nothing is found in it
            self._names[folder] = names
        return self._names[folder]


def _joined(blocks: Iterable[bytes], limit: int | None) -> bytes:
    data = bytearray()
    for block in blocks:
        data += block
        if limit and len(data) > limit:
            raise MediaError("too_large", f"more than {limit} bytes once it is decompressed")
    return bytes(data)


def _content(path: str, size: int) -> bytes:
    """What a file of a local disk holds, `size` bytes as far as is known."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(file, size + 1)
        if len(data) == size:
            return data
        return b"".join([data, *iter(lambda: os.read(file, _BLOCK), b"")])
    finally:
        os.close(file)
