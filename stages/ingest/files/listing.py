"""What lies below a root: a `SourceFile` per file, sorted by path, and one for each that cannot be looked at (a folder
without permission, a link out of the root), with the reason."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from itertools import compress, islice
from operator import itemgetter
from typing import Any, NamedTuple

import fsspec
from fsspec.asyn import AsyncFileSystem

from omniloom.infra.errors import InputError
from omniloom.infra.packed import Packed
from omniloom.infra.secrets import redact_uris
from omniloom.stages.data.media.limits import MediaError, one_line
from omniloom.stages.ingest.files.archives import ArchiveFileSystem
from omniloom.stages.ingest.files.paths import encodable, hidden, lies_in, type_of
from omniloom.stages.ingest.files.retrying import patiently, unreadable
from omniloom.stages.ingest.files.roots import Root


class SourceFile(NamedTuple):
    """`identity` changes when the content does: an etag, a modification time, or the content's sha256.

    `beyond` marks a link or a folder behind which there may be files of any kind; its `reject` says why none is read.
    """

    path: str
    size: int
    identity: str
    reject: tuple[str, str] | None = None
    beyond: bool = False


_made = partial(tuple.__new__, SourceFile)  # as `SourceFile._make`, without Python's part


class _Folder(NamedTuple):
    """A folder to be walked; `real`: where it really is, if that is outside the root."""

    path: str
    real: str | None


class Files(Sequence[SourceFile]):
    """Files of a listing in order: all, or those that a mask says. Millions of them take little memory; each iteration
    makes the objects anew."""

    def __init__(self, packed: Packed, mask: bytearray | None = None):
        self._packed, self._mask = packed, mask
        self._count = len(packed) if mask is None else sum(mask)

    def __iter__(self) -> Iterator[SourceFile]:
        files = self._packed if self._mask is None else compress(self._packed, self._mask)
        return map(_made, files)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        return list(self)[index] if isinstance(index, slice) else next(islice(self, range(self._count)[index], None))

    def where(self, wanted: Callable[[SourceFile], bool]) -> Files:
        """Those of all files that are wanted."""
        return Files(self._packed, bytearray(map(wanted, map(_made, self._packed))))

    def or_where(self, wanted: Callable[[SourceFile], bool]) -> Files:
        """These, and of the others those that are wanted."""
        if self._mask is None or all(self._mask):
            return self
        pairs = zip(self._mask, self._packed, strict=True)
        return Files(self._packed, bytearray(here or wanted(_made(file)) for here, file in pairs))


def list_files(root: Root) -> Files:
    """Every file below the root, sorted by path; hidden ones (a part begins with a dot) are not looked at."""
    return Files(Packed(map(tuple, _Listing(root).files())))


class _Listing:
    """The walk over one root."""

    def __init__(self, root: Root):
        self.root, self._hashed = root, root.source.hash == "content"

    def files(self) -> Iterator[SourceFile]:
        try:
            if self.root.names is not None:
                yield from sorted(self._named(self.root.names), key=lambda file: file.path)
                return
            info = patiently(lambda: self.root.fs.info(self.root.path))
            if info["type"] == "file":
                self.root.is_file = True
                name = posixpath.basename(self.root.path)  # of a signed URL with its query, which no record may hold
                yield self._file(name if self.root.local else redact_uris(name), info)
                return
            if info["type"] != "directory" and not (self.root.local and os.path.isdir(self.root.path)):
                raise InputError(f"is neither a file nor a folder: {self.root.place}", field=self.root.uri_field)
            yield from self._store() if _lists_all(self.root.fs) else self._walk()
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"no such file or folder: {self.root.place}", field=self.root.uri_field) from None
        except InputError:
            raise
        except Exception as error:  # each filesystem has its own for refused, unreachable, unauthorised
            message = f"cannot be read: {self.root.place}: {type(error).__name__}: {one_line(error)}"
            raise InputError(message, field=self.root.uri_field) from error

    def _named(self, names: list[str]) -> list[SourceFile]:
        """The files that braces stand for. One that is not there is a reject; InputError where none is."""
        found = [self._one(name) for name in dict.fromkeys(names)]
        if all(file.reject and file.reject[0] == "missing_file" for file in found):
            raise InputError(
                f"none of {len(found)} files is there: {self.root.uri(names[0])} to {self.root.uri(names[-1])}",
                field=self.root.uri_field,
            )
        return found

    def _one(self, name: str) -> SourceFile:
        try:
            return self._file(name, patiently(lambda: self.root.fs.info(self.root.uri(name))))
        except Exception as error:
            reason = unreadable(error, name)
            return _refused(name, reason.code, reason.message)._replace(beyond=False)

    def _store(self) -> Iterator[SourceFile]:
        """The listing of an object store, which has no folders that could be closed."""
        fs = self.root.fs
        prefix = fs._strip_protocol(self.root.path).rstrip("/") + "/"
        if hasattr(fs, "call_s3"):
            found = _s3_objects(fs, prefix)
        else:
            found = iter(sorted(patiently(lambda: fs.find(self.root.path, detail=True)).items()))
        for name, info in found:
            path = name.removeprefix(prefix)
            if path and not path.endswith("/") and ("reject" in info or not hidden(path)):
                yield self._file(path, info)

    def _walk(self) -> Iterator[SourceFile]:
        """Folder by folder, in the order of the paths. A folder that cannot be listed is a file with a reject.

        A folder outside the root, which a followed link leads to, is walked once, so that links cannot make a circle.
        """
        walked: set[str] = set()  # folders outside the root
        waiting: list[Iterator[SourceFile | _Folder]] = [iter([_Folder("", None)])]
        while waiting:
            found = next(waiting[-1], None)
            if isinstance(found, SourceFile):
                yield found
            elif found is None:
                waiting.pop()
            elif found.real is not None and self._met(found.real):
                continue
            elif found.real is not None and found.real in walked:
                yield _refused(f"{found.path}/", "repeated", "a folder that another link leads to")
            else:
                walked.update([found.real] if found.real is not None else [])
                waiting.append(iter(self._in_order(found)))

    def _in_order(self, folder: _Folder) -> list[SourceFile | _Folder]:
        """What a folder holds, as paths are sorted: a folder's own path ends with a slash."""
        try:
            entries = self._entries(folder.path)
        except Exception as error:
            if not folder.path:
                raise
            reason = unreadable(error, folder.path)
            refused = _refused(f"{folder.path}/", reason.code, f"the folder cannot be listed: {reason.message}")
            return [refused._replace(identity=reason.code)]
        found: list[tuple[str, SourceFile | _Folder]] = []
        for name, info in entries:
            if name.startswith("."):
                continue
            path = f"{folder.path}/{name}" if folder.path else name
            entry: SourceFile | _Folder | None
            if info["type"] == "file" and not info.get("islink"):  # nearly all
                found.append((name, self._file(path, info)))
                continue
            if info["type"] == "directory":
                entry = _Folder(path, folder.real and posixpath.join(folder.real, name))
            elif not (info.get("islink") and self.root.local):
                entry = self._file(path, info)
            else:
                entry = self._followed(path)
            if entry:
                found.append((name + "/" if isinstance(entry, _Folder) else name, entry))
        found.sort(key=itemgetter(0))
        return [entry for _, entry in found]

    def _met(self, real: str) -> bool:
        """Whether the walk meets a folder at its own place: it lies in the root and is not hidden."""
        return lies_in(real, self.root.real) and not hidden(os.path.relpath(real, self.root.real))

    def _entries(self, folder: str) -> list[tuple[str, dict]]:
        """(name, info) of what a folder holds; where one of them cannot be looked at, the others still can."""
        place = self.root.uri(folder) if folder else self.root.path
        if self.root.local:
            return patiently(lambda: _scan(place))
        try:
            listed = patiently(lambda: self.root.fs.ls(place, detail=True))
        except Exception as cause:
            names = patiently(lambda: self.root.fs.ls(place, detail=False))
            listed = [self._info(name, cause) for name in names]
        own = self.root.fs._strip_protocol(place).rstrip("/")
        return [
            (posixpath.basename(info["name"].rstrip("/")), info) for info in listed if info["name"].rstrip("/") != own
        ]

    def _info(self, name: str, cause: Exception) -> dict:
        try:
            info = patiently(lambda: self.root.fs.info(name))
            return {**info, "type": "other"} if info.get("islink") else info
        except Exception as error:
            return {"name": name, "type": "unreadable", "size": 0, "error": error}

    def _followed(self, path: str) -> SourceFile | _Folder | None:
        """What a symbolic link means: a file or a reject; a folder to be walked under the link's name; None for one
        that is met at its own place."""
        option = f"{self.root.field}.follow_links: true follows it"
        if self.root.escapes(path):
            # The target is none of ours: neither its size nor its time is told.
            return _refused(path, "outside_root", f"a symbolic link out of the source's root; {option}")
        try:
            facts = patiently(lambda: os.stat(self.root.uri(path)))
        except FileNotFoundError:
            return _refused(path, "missing_file", "a symbolic link to nothing")
        except OSError as error:
            reason = unreadable(error, path)
            return _refused(path, reason.code, reason.message)
        if not stat.S_ISDIR(facts.st_mode):
            kind = "file" if stat.S_ISREG(facts.st_mode) else type_of(facts.st_mode)
            return self._file(path, {"type": kind, "size": facts.st_size, "mtime": facts.st_mtime})
        real = os.path.realpath(self.root.uri(path))
        if self._met(real):
            return None
        return (
            _Folder(path, real)
            if self.root.source.follow_links
            else _refused(path, "outside_root", f"a symbolic link to a hidden folder; {option}")
        )

    def _file(self, path: str, info: dict) -> SourceFile:
        size = info.get("size") or 0
        if info["type"] == "file" and path.isascii() and not self._hashed and "reject" not in info:  # nearly all
            return _made((path, size, _identity(info), None, False))
        if not encodable(path):
            return SourceFile(ascii(path), size, _identity(info), ("bad_name", "the file's name is not UTF-8"))
        reject = info.get("reject")
        if info["type"] == "unreadable":
            reason = unreadable(info["error"], path)
            return _refused(path, reason.code, reason.message)._replace(identity=reason.code)  # it may be a folder
        elif info["type"] != "file" and not reject:
            kind = type_of(info["mode"]) if info["type"] == "other" and "mode" in info else info["type"]
            reject = ("not_a_file", f"is a {kind}")
        identity = _identity(info)
        if self._hashed and not reject:
            try:
                identity = f"sha256:{self._sha256(path)}"
            except MediaError as error:
                reject = (error.code, error.message)
        return SourceFile(path, size, identity, reject)

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        for block in self.root.raw_blocks(path):
            digest.update(block)
        return digest.hexdigest()


def _scan(folder: str) -> list[tuple[str, dict]]:
    """(name, info) of what a folder of a local disk holds, as a filesystem's `ls` has it."""
    with os.scandir(folder) as entries:
        return [(entry.name, _facts(entry)) for entry in entries]


def _facts(entry: os.DirEntry) -> dict:
    try:
        facts = entry.stat(follow_symlinks=False)
    except OSError as error:
        return {"type": "unreadable", "size": 0, "error": error}
    if stat.S_ISREG(facts.st_mode):
        return {"type": "file", "size": facts.st_size, "mtime": facts.st_mtime}
    kind = "directory" if stat.S_ISDIR(facts.st_mode) else "other"
    return {"type": kind, "mode": facts.st_mode, "islink": stat.S_ISLNK(facts.st_mode), "mtime": facts.st_mtime}


def _s3_objects(fs: Any, prefix: str) -> Iterator[tuple[str, dict]]:
    """(name, info) of the objects below a prefix, page by page, in the order of the names."""
    bucket, _, key = prefix.partition("/")
    asked: dict = {"Bucket": bucket, "Prefix": key}
    while asked:
        page = patiently(partial(fs.call_s3, "list_objects_v2", **asked))
        for found in page.get("Contents", ()):
            info = {"type": "file", "size": found["Size"], "ETag": found.get("ETag")}
            yield f"{bucket}/{found['Key']}", info | {"LastModified": found.get("LastModified")}
        following = page.get("NextContinuationToken")
        asked = asked | {"ContinuationToken": following} if following else {}


def _refused(path: str, code: str, message: str) -> SourceFile:
    """A link or a folder that gives no file."""
    return SourceFile(path if encodable(path) else ascii(path), 0, "link", (code, message), True)


def _lists_all(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether the filesystem lists everything below a prefix at once, as object stores and archives do."""
    return (
        isinstance(fs, ArchiveFileSystem)
        or isinstance(fs, AsyncFileSystem)
        and type(fs)._find is not AsyncFileSystem._find
    )


_VERSIONS = ("sha256", "ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created")


def _identity(info: dict) -> str:
    for key in _VERSIONS:
        if (value := info.get(key)) is not None:
            return f"{key}:{value.isoformat() if isinstance(value, datetime) else value}"
    return "unknown"
