"""Roots: the folder or file that a source names, on any filesystem: what lies below it, and its content.

In: a source of the config. Out: `SourceFile`s, one per file, sorted by path, and one for each that cannot be looked at
(a folder without permission, a link out of the root), with the reason; bytes, or `MediaError` with the reason.

Errors that pass (a throttled store, a lost connection, EIO) are tried again a few times. Nothing but regular files is
ever opened: a FIFO would wait for ever. Symbolic links are followed to what lies inside the root, and elsewhere where
the source says `follow_links`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact_uris
from omniloom.stages.data.media.limits import MediaError, one_line
from omniloom.stages.ingest.options import SourceConfig

# The demo's corpus; loaded at first use.
fsspec.register_implementation("digits", "omniloom.stages.ingest.digits.DigitsFileSystem")

WAITS = (0.1, 0.5, 2.0)  # seconds before each further try
_BLOCK = 1 << 20
_PASSING = {
    getattr(errno, name)
    for name in (
        "EIO",
        "EAGAIN",
        "EINTR",
        "EBUSY",
        "ETIMEDOUT",
        "ECONNRESET",
        "ECONNREFUSED",
        "ECONNABORTED",
        "EPIPE",
        "ENETDOWN",
        "ENETUNREACH",
        "ENETRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ESTALE",
        "ENOBUFS",
        "EMFILE",
        "ENFILE",
    )
}
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
# Parts of the names that clients give to errors of theirs that are no OSError.
_PASSING_NAMES = (
    "timeout",
    "throttl",
    "slowdown",
    "connection",
    "disconnected",
    "incomplete",
    "payload",
    "unavailable",
)
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")


def passes(error: BaseException) -> bool:
    """Whether another try may go well: a timeout, a lost connection, a store that is busy or throttles."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        if isinstance(current, _FINAL):
            return False
        if isinstance(current, ConnectionError | TimeoutError) or getattr(current, "errno", None) in _PASSING:
            return True
        words = [type(current).__name__, *(str(w) for w in _response(current).get("Error", {}).values())]
        if _status(current) in _PASSING_STATUS or any(
            name in word.lower().replace(" ", "") for word in words for name in _PASSING_NAMES
        ):
            return True
        seen.append(current)
        current = current.__cause__ or current.__context__
    return False


def _response(error: BaseException) -> dict:
    """What botocore's errors keep of the answer: {"Error": {"Code"}, "ResponseMetadata": {"HTTPStatusCode"}}."""
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    found = [
        _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode"),
        *(
            getattr(holder, name, None)
            for holder in (error, response)
            for name in ("status", "status_code", "http_status", "code")
        ),
    ]
    return next((int(value) for value in found if str(value).isdigit()), None)


def patiently(call: Callable[[], T]) -> T:
    """What `call` gives; where it fails in a way that passes, it is called again after each of `WAITS`."""
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            if not passes(error):
                raise
        time.sleep(wait)
    return call()


def unreadable(error: Exception, path: str) -> MediaError:
    """The reject that says why a file or folder could not be read."""
    shown = path if len(path) <= 80 else f"{path[:60]}... ({len(path)} characters)"
    code = getattr(error, "errno", None)
    if isinstance(error, MediaError):
        return error
    if isinstance(error, FileNotFoundError):
        return MediaError("missing_file", f"{shown} is not there")
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return MediaError("not_a_file", f"{shown} is no file")
    if code == errno.ENAMETOOLONG or isinstance(error, UnicodeError) or "null byte" in str(error):
        return MediaError("bad_name", f"{shown} can be no file's name: {one_line(error)}")
    tries = f" (tried {len(WAITS) + 1} times)" if passes(error) else ""
    return MediaError("unreadable", f"{shown}: {type(error).__name__}: {one_line(error)}{tries}")


@dataclass(frozen=True)
class SourceFile:
    """`identity` changes when the content does: an etag, a modification time, or the content's sha256.

    `beyond` marks a link or a folder behind which there may be files of any kind; its `reject` says why none is read.
    """

    path: str
    size: int
    identity: str
    reject: tuple[str, str] | None = None
    beyond: bool = False


class Root:
    """A root, a folder or one file, on any filesystem; `uri_field` is where the config names it."""

    def __init__(self, source: SourceConfig, index: int, uri: str | None = None, name: str = "uri"):
        self.source, self.index = source, index
        self.field = f"sources.{index}"
        self.uri_field = f"{self.field}.{name}"
        self.place = storage.absolute(uri or source.uri)
        try:
            self.fs, self.path = storage.filesystem(self.place)
        except (ValueError, ImportError) as error:
            raise InputError(f"{uri or source.uri!r} cannot be opened: {error}", field=self.uri_field) from None
        self.local = isinstance(self.fs, LocalFileSystem)
        self.real = os.path.realpath(self.path) if self.local else self.path
        self.is_file = False
        self._names: dict[str, dict[str, list[str]]] = {}

    def uri(self, path: str) -> str:
        """The filesystem's own path of a file below the root."""
        return posixpath.join(self.path, path) if not self.is_file else self.path

    # ---- content ----

    def read(self, path: str, limit: int | None = None, size: int | None = None) -> bytes:
        """The content of a file of at most `limit` bytes; its type and size are looked at before it is opened.

        `size` spares a remote filesystem the question. Raises MediaError, whatever the filesystem's own error was.
        """
        try:
            known = patiently(lambda: self._check(path, size))
            if limit and known and known > limit:
                raise MediaError("too_large", f"{known} bytes, at most {limit}")
            return patiently(lambda: self.fs.cat_file(self.uri(path)))
        except Exception as error:
            raise unreadable(error, path) from error

    def blocks(self, path: str) -> Iterator[bytes]:
        """The content of a file block by block, of which none is empty; after a failure it goes on where it was."""
        file, at = None, 0

        def block() -> bytes:
            nonlocal file
            if file is None:
                self._check(path)
                file = self.fs.open(self.uri(path), "rb")
                file.seek(at)
            try:
                return file.read(_BLOCK)
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

    def _check(self, path: str, size: int | None = None) -> int | None:
        """The size of a regular file inside the root; MediaError for anything else."""
        if self.escapes(path):
            raise MediaError(
                "outside_root",
                f"{path[:200]} leads out of the source's root; {self.field}.follow_links: true follows links",
            )
        if self.local:
            facts = os.stat(self.uri(path))
            if not stat.S_ISREG(facts.st_mode):
                raise MediaError("not_a_file", f"{path[:200]} is a {_type(facts.st_mode)}")
            return facts.st_size
        if size is not None:
            return size
        info = self.fs.info(self.uri(path))
        if info["type"] != "file":
            raise MediaError("not_a_file", f"{path[:200]} is a {info['type']}")
        return info.get("size")

    def escapes(self, path: str) -> bool:
        """True where a symbolic link on the way leads out of the root and is not to be followed."""
        if self.is_file or not self.local or self.source.follow_links:
            return False
        return not _within(os.path.realpath(self.uri(path)), self.real)

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

    # ---- listing ----

    def files(self) -> list[SourceFile]:
        """Every file below the root, sorted by path; hidden ones (a part begins with a dot) are not looked at."""
        try:
            info = patiently(lambda: self.fs.info(self.path))
            if info["type"] == "file":
                self.is_file = True
                name = posixpath.basename(self.path)  # of a signed URL with its query, which no record may hold
                return [self._file(name if self.local else redact_uris(name), info)]
            if info["type"] != "directory" and not (self.local and os.path.isdir(self.path)):
                raise InputError(f"is neither a file nor a folder: {self.place}", field=self.uri_field)
            found = self._store() if _lists_all(self.fs) else self._walk()
            return sorted(found, key=lambda file: file.path)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"no such file or folder: {self.place}", field=self.uri_field) from None
        except InputError:
            raise
        except Exception as error:  # each filesystem has its own for refused, unreachable, unauthorised
            message = f"cannot be read: {self.place}: {type(error).__name__}: {one_line(error)}"
            raise InputError(message, field=self.uri_field) from error

    def _store(self) -> list[SourceFile]:
        """The listing of an object store, which has no folders that could be closed."""
        prefix = self.fs._strip_protocol(self.path).rstrip("/") + "/"
        found = patiently(lambda: self.fs.find(self.path, detail=True))
        paths = ((name.removeprefix(prefix), info) for name, info in found.items())
        return [
            self._file(path, info)
            for path, info in paths
            if path and not path.endswith("/") and not any(part.startswith(".") for part in path.split("/"))
        ]

    def _walk(self) -> list[SourceFile]:
        """Folder by folder, in the order of the names. A folder that cannot be listed is a file with a reject.

        A folder outside the root, which a followed link leads to, is walked once, so that links cannot make a circle.
        """
        found: list[SourceFile] = []
        waiting: list[tuple[str, str | None]] = [("", None)]  # below the root; where it really is, if outside
        walked: set[str] = set()
        while waiting:
            folder, real = waiting.pop()
            if real is not None:
                if self._met(real):
                    continue
                if real in walked:
                    found.append(_refused(f"{folder}/", "repeated", "a folder that another link leads to"))
                    continue
                walked.add(real)
            try:
                entries = sorted(self._entries(folder), key=lambda entry: entry[0])
            except Exception as error:
                if not folder:
                    raise
                reason = unreadable(error, folder)
                reject = (reason.code, f"the folder cannot be listed: {reason.message}")
                found.append(replace(_refused(f"{folder}/", *reject), identity=reason.code))
                continue
            below: list[tuple[str, str | None]] = []
            for name, info in entries:
                path = posixpath.join(folder, name)
                if name.startswith("."):
                    continue
                if info["type"] == "directory":
                    below.append((path, real and posixpath.join(real, name)))
                elif not (info.get("islink") and self.local):
                    found.append(self._file(path, info))
                elif isinstance(target := self._followed(path), str):
                    below.append((path, target))
                elif target:
                    found.append(target)
            waiting += reversed(below)
        return found

    def _met(self, real: str) -> bool:
        """Whether the walk meets a folder at its own place: it lies in the root and is not hidden."""
        return _within(real, self.real) and not hidden(os.path.relpath(real, self.real))

    def _entries(self, folder: str) -> list[tuple[str, dict]]:
        """(name, info) of what a folder holds; where one of them cannot be looked at, the others still can."""
        place = self.uri(folder) if folder else self.path
        try:
            listed = patiently(lambda: self.fs.ls(place, detail=True))
        except Exception as cause:
            names = patiently(lambda: self.fs.ls(place, detail=False))
            listed = [self._info(name, cause) for name in names]
        own = self.fs._strip_protocol(place).rstrip("/")
        return [
            (posixpath.basename(info["name"].rstrip("/")), info) for info in listed if info["name"].rstrip("/") != own
        ]

    def _info(self, name: str, cause: Exception) -> dict:
        try:
            info = patiently(lambda: self.fs.info(name))
            return {**info, "type": "other"} if info.get("islink") else info
        except Exception as error:
            return {"name": name, "type": "unreadable", "size": 0, "error": error}

    def _followed(self, path: str) -> SourceFile | str | None:
        """What a symbolic link means: a file, or a reject; the real path of a folder that is to be walked under the
        link's name; None for a folder that is met at its own place.
        """
        option = f"{self.field}.follow_links: true follows it"
        if self.escapes(path):
            # The target is none of ours: neither its size nor its time is told.
            return _refused(path, "outside_root", f"a symbolic link out of the source's root; {option}")
        try:
            facts = patiently(lambda: os.stat(self.uri(path)))
        except FileNotFoundError:
            return _refused(path, "missing_file", "a symbolic link to nothing")
        except OSError as error:
            reason = unreadable(error, path)
            return _refused(path, reason.code, reason.message)
        if not stat.S_ISDIR(facts.st_mode):
            kind = "file" if stat.S_ISREG(facts.st_mode) else _type(facts.st_mode)
            return self._file(path, {"type": kind, "size": facts.st_size, "mtime": facts.st_mtime})
        real = os.path.realpath(self.uri(path))
        if self._met(real):
            return None
        return (
            real
            if self.source.follow_links
            else _refused(path, "outside_root", f"a symbolic link to a hidden folder; {option}")
        )

    def _file(self, path: str, info: dict) -> SourceFile:
        size = info.get("size") or 0
        if not encodable(path):
            return SourceFile(ascii(path), size, _identity(info), ("bad_name", "the file's name is not UTF-8"))
        reject = None
        if info["type"] == "unreadable":
            reason = unreadable(info["error"], path)
            return replace(_refused(path, reason.code, reason.message), identity=reason.code)  # it may be a folder
        elif info["type"] != "file":
            kind = _type(info["mode"]) if info["type"] == "other" and "mode" in info else info["type"]
            reject = ("not_a_file", f"is a {kind}")
        identity = _identity(info)
        if self.source.hash == "content" and not reject:
            try:
                identity = f"sha256:{self._sha256(path)}"
            except MediaError as error:
                reject = (error.code, error.message)
        return SourceFile(path, size, identity, reject)

    def _sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        for block in self.blocks(path):
            digest.update(block)
        return digest.hexdigest()


def _refused(path: str, code: str, message: str) -> SourceFile:
    """A link or a folder that gives no file."""
    return SourceFile(path if encodable(path) else ascii(path), 0, "link", (code, message), True)


def _lists_all(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether the filesystem lists everything below a prefix at once, as object stores do."""
    return isinstance(fs, AsyncFileSystem) and type(fs)._find is not AsyncFileSystem._find


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def hidden(path: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def _type(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFDIR: "folder",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def _identity(info: dict) -> str:
    for key in ("sha256", "ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created"):
        if (value := info.get(key)) is not None:
            return f"{key}:{value.isoformat() if isinstance(value, datetime) else value}"
    return "unknown"


def encodable(text: str) -> bool:
    """False for lone surrogates, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
