"""What an outside file or folder holds, for the identity of what is made from it.

In: an absolute path or a URI. Out: one fact per file that is read. A local file's is its sha256, whatever its size, so
that a copy is the same; hashes are remembered on this machine by size, inode and times, and a file is read once. On an
object store or a server files of up to `_READ` bytes (JSON: `_READ_JSON`) are hashed too, larger ones known by their
size and etag (or time), since reading is a transfer.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase

from omniloom.infra import integrity, storage
from omniloom.infra.artifacts import require_finished
from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact_uris

_READ, _READ_JSON = 1 << 20, 64 << 20


@dataclass(frozen=True)
class Content:
    """One file: its path below the folder (empty for the file itself), size in bytes, and what changes with it."""

    path: str
    size: int
    identity: str


def read_contents(uri: str, kind: str = "any", reads: Sequence[str] = (), beside: Sequence[str] = ()) -> list[Content]:
    """The files at `uri`, sorted by path.

    `kind`: file, folder or any. `reads`: globs over the names of files in a folder that count, by default all that lies
    below it but hidden files. `beside`: names of files that count where they lie beside the file. Raises InputError,
    without a field, for a place that is not there, cannot be read, or is of another kind.
    """
    try:
        is_file, sizes = _look(uri, reads, beside)
        require_finished(uri)
        if kind != "any" and is_file != (kind == "file"):
            raise InputError(f"is a {'file' if is_file else 'folder'}, expected a {kind}: {redact_uris(uri)}")
        if not is_file and reads:
            sizes = {
                name: fact
                for name, fact in sizes.items()
                if "/" not in name and any(fnmatchcase(name, glob) for glob in reads)
            }
            if not sizes:
                raise InputError(f"the folder holds no file named {' or '.join(reads)}: {redact_uris(uri)}")
        folder = posixpath.dirname(uri) if is_file else uri
        identities = _identities(folder, sizes)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no such file or folder: {redact_uris(uri)}") from None
    except InputError:
        raise
    except Exception as error:  # each filesystem has its own for refused, unreachable, unauthorised
        raise InputError(f"cannot be read: {redact_uris(uri)}: {type(error).__name__}: {error}") from error
    own = posixpath.basename(uri) if is_file else None
    return [Content("" if name == own else name, sizes[name].size, identities[name]) for name in sorted(sizes)]


@dataclass(frozen=True)
class _Fact:
    size: int
    version: str | None  # a remote file's etag or time, where the filesystem tells it; None for a local file


def version(info: dict) -> str | None:
    """What a filesystem's facts about a file say of its version: a hash, an etag or a time."""
    for key in ("sha256", "ETag", "etag", "md5", "mtime", "LastModified", "last_modified", "updated", "created"):
        if (value := info.get(key)) is not None:
            return f"{key}:{value.isoformat() if isinstance(value, datetime) else value}"
    return None


def _look(uri: str, reads: Sequence[str], beside: Sequence[str]) -> tuple[bool, dict[str, _Fact]]:
    """Whether there is a file at `uri`, and it with what lies `beside` it; or the files in the folder that count."""
    if (local := storage.local_path(uri)) is not None:
        if local.exists() and not local.is_file() and not local.is_dir():
            raise InputError(f"is neither a file nor a folder: {uri}")
        if not local.is_dir():
            near = [name for name in beside if (local.parent / name).is_file()]
            return True, {name: _Fact((local.parent / name).stat().st_size, None) for name in [local.name, *near]}
        return False, _walk(str(local), bool(reads))
    fs, root = storage.filesystem(uri)
    info = fs.info(root)
    if info["type"] == "file":
        found = {posixpath.basename(uri): info}
        for name in beside:
            place = storage.filesystem(storage.join(posixpath.dirname(uri), name))[1]
            if fs.exists(place):
                found[name] = fs.info(place)
    else:
        prefix = fs._strip_protocol(root).rstrip("/") + "/"
        found = {name.removeprefix(prefix): facts for name, facts in fs.find(root, detail=True).items()}
    visible = {name: facts for name, facts in found.items() if not _hidden(name)}
    return info["type"] == "file", {n: _Fact(facts.get("size") or 0, version(facts)) for n, facts in visible.items()}


def _walk(root: str, flat: bool) -> dict[str, _Fact]:
    """The regular files in a local folder, and below it unless `flat`; links are followed, a folder is entered once."""
    found, entered = {}, set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_fail):
        if (real := os.path.realpath(folder)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [] if flat else sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and os.path.isfile(path):
                found[os.path.relpath(path, root)] = _Fact(os.stat(path).st_size, None)
    return found


def _fail(error: OSError) -> None:
    raise error


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _identities(folder: str, facts: dict[str, _Fact]) -> dict[str, str]:
    """By name, `sha256:...` of what is hashed, else the size and the version."""
    hashed = {
        name: fact
        for name, fact in facts.items()
        if fact.version is None or fact.size <= (_READ_JSON if name.endswith(".json") else _READ)
    }
    versions = {name: [fact.size, fact.version] for name, fact in hashed.items() if fact.version is not None}
    hashes = integrity.hashes(folder, list(hashed), versions)
    return {name: f"sha256:{hashes[name]}" if name in hashes else f"{f.size} {f.version}" for name, f in facts.items()}
