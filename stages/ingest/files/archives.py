"""Archives as folders: a zip or a tar that a source's `uri` names is read as the folder that it would unpack to.

In: the archive on any filesystem. Out: a filesystem of its members. Nothing is unpacked, but for a compressed tar, in
which nothing can be found: that is decompressed once, into the cache of this machine.

No name leads out of it: a member that is called `../x`, or by an absolute path, or that links elsewhere, has a `reject`
among its facts, and so has one that is encrypted, or no file. Of members of one name the last counts, as it would be
if they were unpacked.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from omniloom.infra import disk, storage
from omniloom.infra.once import once
from omniloom.stages.ingest.files import tars
from omniloom.stages.ingest.files.compressed import decompressed
from omniloom.stages.ingest.files.suffixes import compression, suffix

_BLOCK = 1 << 20
_IDENTITY = ("name", "size", "mtime", "etag", "ETag", "LastModified")  # of an archive: what changes when it does


def opened(fs: fsspec.AbstractFileSystem, path: str) -> ArchiveFileSystem:
    """The archive at `path`. Its directory is read once in a process, for as long as the archive does not change."""
    facts = {key: str(value) for key, value in fs.info(path).items() if key in _IDENTITY}
    return _opened(fs, path, tuple(sorted(facts.items())))


@lru_cache(maxsize=4)
def _opened(fs: fsspec.AbstractFileSystem, path: str, facts: tuple) -> ArchiveFileSystem:
    return ArchiveFileSystem(fs, path)


class ArchiveFileSystem(AbstractFileSystem):
    """The members of the archive at `path` of the filesystem `inner`; the root is "". `find` gives all at once."""

    cachable = False
    protocol = "archive"

    def __init__(self, inner: fsspec.AbstractFileSystem, path: str):
        super().__init__()
        self.inner, self.path = inner, path
        self._reader: _Zip | _Tar | None = None

    @property
    def reader(self) -> _Zip | _Tar:
        if self._reader is None:
            self._reader = _Zip(self.inner, self.path) if suffix(self.path) == ".zip" else _Tar(self.inner, self.path)
        return self._reader

    @cached_property
    def members(self) -> dict[str, dict]:
        """Path -> the facts of every member that is no folder, as `info` gives them."""
        found: dict[str, dict] = {}
        for name, facts in self.reader.members():
            path, problem = _safe(name)
            found[path] = {"name": path, "type": "file", **facts} | ({"reject": problem} if problem else {})
        return {path: _resolved(facts, found) for path, facts in found.items()}

    @cached_property
    def folders(self) -> dict[str, set[str]]:
        """Folder -> the names in it."""
        found: dict[str, set[str]] = {"": set()}
        for path in self.members:
            while path:
                folder, name = posixpath.split(path)
                found.setdefault(folder, set()).add(name)
                path = folder
        return found

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(path).removeprefix("archive://").strip("/")

    def info(self, path: str, **kwargs: Any) -> dict:
        path = self._strip_protocol(path)
        if path in self.members:
            return self.members[path]
        if path in self.folders:
            return {"name": path, "type": "directory", "size": 0}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list:
        path = self._strip_protocol(path)
        if path not in self.folders:
            raise FileNotFoundError(path)
        names = [posixpath.join(path, name) for name in sorted(self.folders[path])]
        return [self.info(name) for name in names] if detail else names

    def find(self, path: str = "", maxdepth: Any = None, withdirs: bool = False, detail: bool = False, **kwargs: Any):
        start = f"{self._strip_protocol(path)}/".lstrip("/")
        found = {name: facts for name, facts in self.members.items() if name.startswith(start)}
        return found if detail else sorted(found)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        facts = self.info(path)
        try:
            return self.reader.content(facts)[start:end]
        except OSError:
            self._reader = None  # a connection that was lost is opened anew
            raise

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BytesIO:
        return io.BytesIO(self.cat_file(path))


def _safe(name: str) -> tuple[str, tuple[str, str] | None]:
    """The path below the archive's root; and a reject for a name that means a place outside it."""
    path = posixpath.normpath(name.replace("\\", "/"))
    if name.startswith("/") or path.split("/")[0] in ("..", ".") or re.match(r"[A-Za-z]:", path) or "\0" in name:
        return f"{ascii(name)[1:-1]}".lstrip("/"), (
            "outside_root",
            "leads out of the archive; nothing is written anywhere",
        )
    return path, None


def _resolved(facts: dict, found: dict[str, dict]) -> dict:
    """The facts of a member; for a link those of the member that it leads to, a few links on."""
    target = facts
    for _ in range(8):
        if "link" not in target or "reject" in target:
            break
        folder = "" if target["link_from_root"] else posixpath.dirname(target["name"])
        path = posixpath.normpath(posixpath.join(folder, target["link"]))
        if path.startswith(("../", "/")) or path == "..":
            return facts | {"reject": ("outside_root", "a link out of the archive")}
        if path not in found:
            return facts | {"reject": ("missing_file", "a link to nothing, or to a folder")}
        target = found[path]
    else:
        return facts | {"reject": ("unreadable", "links in a circle")}
    return target | {"name": facts["name"]}


class _Zip:
    """A zip by its directory, at the file's end."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str):
        self._zip = zipfile.ZipFile(fs.open(path, "rb"))

    def members(self) -> Iterator[tuple[str, dict]]:
        for number, info in enumerate(self._zip.infolist()):
            mode = info.external_attr >> 16
            if info.is_dir():
                continue
            facts: dict[str, Any] = {"size": info.file_size, "etag": f"{info.CRC:08x}", "number": number}
            if info.flag_bits & 1:
                facts["reject"] = ("unsupported", "is encrypted")
            elif stat.S_ISLNK(mode):
                facts |= self._link(info)
            yield info.filename, facts

    def _link(self, info: zipfile.ZipInfo) -> dict[str, Any]:
        if info.file_size > 4096:
            return {"reject": ("unreadable", "a link to a name that no file can have")}
        return {"link": self._zip.read(info).decode("utf-8", "surrogateescape"), "link_from_root": False}

    def content(self, facts: dict) -> bytes:
        try:
            return self._zip.read(self._zip.infolist()[facts["number"]])
        except zipfile.BadZipFile as error:
            raise ValueError(str(error)) from None


class _Tar:
    """A tar by its headers, from its beginning to its end."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str):
        self._facts, self._lock = fs.info(path), threading.Lock()
        self._file = open(_plain(fs, path, self._facts), "rb") if compression(path) else fs.open(path, "rb")

    def members(self) -> Iterator[tuple[str, dict]]:
        changed = {key: self._facts[key] for key in _IDENTITY[2:] if key in self._facts}
        end = self._file.seek(0, io.SEEK_END)
        for member in tars.members(self._file):
            if isinstance(member, tars.Damage):
                name = f"byte {member.position} of {posixpath.basename(self._facts['name'])}"
                yield name, {"size": 0, "reject": (member.code, member.message)}
            elif member.type != "folder":
                facts = {"size": member.size, "offset": member.offset, **changed}
                if "link" in member.type:
                    facts |= {"link": member.link, "link_from_root": member.type == "hard link"}
                elif member.type != "file":
                    facts["reject"] = ("not_a_file", f"is a {member.type}")
                elif member.offset + member.size > end:
                    facts["reject"] = ("truncated", "the archive ends before the file does")
                yield member.name, facts

    def content(self, facts: dict) -> bytes:
        with self._lock:
            self._file.seek(facts["offset"])
            return self._file.read(facts["size"])


def _plain(fs: fsspec.AbstractFileSystem, path: str, facts: dict) -> Path:
    """A compressed tar without its compression, made once on this machine for as long as it does not change."""
    known = {key: str(value) for key, value in facts.items() if key in _IDENTITY}
    digest = hashlib.sha256(repr(sorted(known.items())).encode()).hexdigest()

    def make(target: Path) -> None:
        with fs.open(path, "rb") as file, open(target, "wb") as out:
            for block in decompressed(iter(lambda: file.read(_BLOCK), b""), compression(path) or ""):
                out.write(block)
        disk.sync([target])

    storage.remove_leftovers(str(storage.cache_folder()))
    return once(storage.cache_folder() / f"{digest}.tar", make)
