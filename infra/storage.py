"""Storage: URIs on any fsspec filesystem, with the few operations that the workflow needs.

A path in OmniLoom is a URI string (`/data/run`, `file:///data/run`, `s3://bucket/run`, `memory://run`); relative
local paths are made absolute once, where the config is read. Credentials and endpoints come from the environment
in fsspec's own way (`FSSPEC_S3_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...), so that workers on other machines find them.

What these functions have written, copied, moved or removed when they return is so after a power cut: on a local disk
files and folders are synced (`infra.disk`), an object store keeps what it has acknowledged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import posixpath
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.core import has_magic, split_protocol

from omniloom.infra import disk
from omniloom.infra.errors import InputError
from omniloom.infra.once import once

# Listings must be true at once for every reader: a lease or a manifest that another process wrote a second ago
# must be seen, so remote filesystems run without their listings cache.
_UNCACHED = {"s3": {"use_listings_cache": False}, "s3a": {"use_listings_cache": False}}
# `dbfs:/x`, and `digits:/`, which another part of a path follows.
_ONE_SLASH = re.compile(r"(?!file:|local:)[A-Za-z][A-Za-z0-9+.-]+:/")
_AT_ONCE = 32 << 20  # bytes of a file that is read whole
_TOGETHER = 16  # files that are copied at a time
_MEMORY = threading.Lock()  # `memory://` looks before it creates, which its threads must do one at a time


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of `uri` and the path within it."""
    protocol, _ = split_protocol(uri)
    return fsspec.core.url_to_fs(uri, **_UNCACHED.get(protocol or "", {}))


def is_local(uri: str) -> bool:
    return (split_protocol(uri)[0] or "file") in ("file", "local")


def is_process_local(uri: str) -> bool:
    """True where another process cannot see what this one stores (`memory://`)."""
    return split_protocol(uri)[0] == "memory"


def absolute(uri: str) -> str:
    """Local paths made absolute (`~` expanded, `file://` dropped); any other URI as it is, less a trailing slash."""
    if is_local(uri) and not _ONE_SLASH.match(uri):
        path = split_protocol(uri)[1]
        return os.path.abspath(os.path.expanduser(path))
    return uri if uri.endswith(("://", ":/")) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    return posixpath.join(uri, *parts)


def local_path(uri: str) -> Path | None:
    """The local path of a local URI, else None."""
    return Path(split_protocol(uri)[1]) if is_local(uri) else None


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return fs.exists(path)


def read_bytes(uri: str) -> bytes:
    return whole(*filesystem(uri))


def whole(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """What a file holds, with one request: s3fs would ask for its size first, to read a large one in pieces."""
    return fs.cat_file(path, max_concurrency=1) if _is_s3(fs) else fs.cat_file(path)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file at once: a reader sees the old content or the new one, never a part.

    Object stores give that by themselves; on a local disk a temporary file is renamed into place.
    """
    fs, path = filesystem(uri)
    if is_local(uri):
        with disk.writing(path) as file:
            file.write(data)
        return
    _make_parent(fs, path)
    fs.pipe_file(path, data)


def _make_parent(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """The folder of a file, where the filesystem has folders; to ask S3 for one costs a request and gives nothing."""
    if not _is_s3(fs):
        fs.makedirs(fs._parent(path), exist_ok=True)


def _is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    return hasattr(fs, "call_s3")


class Digest:
    """A file to write that knows what was written: its bytes and their sha256."""

    def __init__(self, file: BinaryIO):
        self._file, self._hash, self._bytes = file, hashlib.sha256(), 0
        self.closed = False

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self._bytes += len(memoryview(data).cast("B"))
        return self._file.write(data)

    def tell(self) -> int:
        return self._bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True  # the file is closed by who opened it

    def facts(self) -> dict:
        """{bytes, sha256}."""
        return {"bytes": self._bytes, "sha256": self._hash.hexdigest()}


@contextlib.contextmanager
def writing(uri: str) -> Iterator[BinaryIO]:
    """A file to write piece by piece, which is at `uri`, whole, once the block is left without an error. An object
    store gets it in one request, from memory."""
    if is_local(uri):
        with disk.writing(filesystem(uri)[1]) as local:
            yield local
        return
    remote = io.BytesIO()
    yield remote
    write_bytes(uri, remote.getvalue())


def read_json(uri: str) -> dict | None:
    """The JSON object in the file, or None where there is no file; InputError naming the file where it holds none."""
    try:
        data = read_bytes(uri)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(data)
    except ValueError as error:  # text that is no JSON, or bytes that are no text
        value, wrong = None, f"{len(data)} bytes: {error}"
    else:
        wrong = f"holds a {type(value).__name__}"
    if isinstance(value, dict):
        return value
    raise InputError(
        f"expected a JSON object ({wrong}); the file is damaged: put it back from a copy, or remove it "
        "and run again, which makes anew what it belongs to",
        file=uri,
    )


def load_json(uri: str) -> dict:
    """The JSON object in a file that has to be there; InputError naming the file where it is missing or holds none."""
    value = read_json(uri)
    if value is None:
        raise InputError(
            "is missing; put it back from a copy, or run again with --force the stage that makes it", file=uri
        )
    return value


def write_json(uri: str, value: dict) -> None:
    write_bytes(uri, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode())


def create_exclusively(uri: str, data: bytes) -> bool:
    """Create the file only if nobody has; False where it is there already. Atomic on local disks, in memory, on S3.

    The file appears with its content: a hard link on a local disk, one conditional request on an object store.
    """
    fs, path = filesystem(uri)
    if not is_local(uri):
        _make_parent(fs, path)
    try:
        if is_local(uri):
            with disk.writing(path, exclusive=True) as file:
                file.write(data)
        elif is_process_local(uri):
            with _MEMORY:
                fs.pipe_file(path, data, mode="create")
        else:
            fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def list_files(uri: str) -> dict[str, int]:
    """Files below `uri`: path relative to it -> bytes, sorted; empty where the folder is missing."""
    fs, root = filesystem(uri)
    try:
        found = fs.find(root, detail=True)
    except FileNotFoundError:
        return {}
    prefix = fs._strip_protocol(root).rstrip("/") + "/"
    return {
        name.removeprefix(prefix): info["size"]
        for name, info in sorted(found.items())
        if f"/{disk.UNFINISHED}" not in "/" + name.removeprefix(prefix)
    }


def modified_unix(uri: str) -> float:
    """When the file was written. NotImplementedError of a filesystem that does not tell."""
    fs, path = filesystem(uri)
    return fs.modified(path).timestamp()


def sha256(uri: str, size: int | None = None) -> str:
    """Of a file's content; one that is known to be of a small `size` is read with one request."""
    fs, path = filesystem(uri)
    if not is_local(uri) and size is not None and size <= _AT_ONCE:
        return hashlib.sha256(whole(fs, path)).hexdigest()
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def copy_file(source: str, target: str) -> None:
    """Copy one file between any two filesystems."""
    if not is_local(target):
        _copy(source, target)
        return
    source_fs, source_path = filesystem(source)
    with source_fs.open(source_path, "rb") as reader, disk.writing(filesystem(target)[1]) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _copy(source: str, target: str) -> None:
    """Copy one file, on a local disk without syncing it."""
    source_fs, source_path = filesystem(source)
    target_fs, target_path = filesystem(target)
    _make_parent(target_fs, target_path)
    if type(source_fs) is type(target_fs):
        source_fs.cp_file(source_path, target_path)  # `copy` would read `[` and `*` in a name as a pattern
        return
    with source_fs.open(source_path, "rb") as reader, target_fs.open(target_path, "wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def share_file(source: str, target: str) -> None:
    """The file at another place too, without its content passing through here where the store can: a hard link on a
    local disk, a copy within an object store. Whoever changes one of them writes a new file, and not into it.

    On a local disk it is not synced: see `sync`.
    """
    if is_local(source) and is_local(target):
        old, new = filesystem(source)[1], filesystem(target)[1]
        if os.path.exists(new) and os.path.samefile(old, new):
            return
        os.makedirs(os.path.dirname(new), exist_ok=True)
        temporary = os.path.join(os.path.dirname(new), f"{disk.UNFINISHED}{uuid.uuid4().hex}")
        try:
            os.link(old, temporary)
            os.replace(temporary, new)
            return
        except FileNotFoundError:
            raise
        except OSError:  # another disk, or one without links
            pass
    elif type(filesystem(source)[0]) is type(filesystem(target)[0]):
        _copy(source, target)
        return
    copy_file(source, target)


def share_files(source: str, target: str, names: Iterable[str]) -> None:
    """`share_file` of these below one folder to below another; in a store many at a time."""
    pairs = [(join(source, name), join(target, name)) for name in names]
    if is_local(source) and is_local(target):
        for pair in pairs:
            share_file(*pair)
        return
    with ThreadPoolExecutor(_TOGETHER) as pool:
        list(pool.map(lambda pair: share_file(*pair), pairs))


def copy_tree(source: str, target: str, names: Iterable[str] | None = None) -> None:
    """Copy these files below a folder, by default all."""
    names = list_files(source) if names is None else names
    with ThreadPoolExecutor(_TOGETHER) as pool:
        list(pool.map(lambda name: _copy(join(source, name), join(target, name)), names))
    sync(target)


def sync(uri: str) -> None:
    """What was written below this local folder by other means is on the disk; an object store has it already."""
    if is_local(uri):
        disk.sync_tree(filesystem(uri)[1])


def move_files(source: str, target: str, names: Iterable[str]) -> None:
    """Move these files from below one folder to below another; within a local disk these are renames."""
    pairs = [(join(source, name), join(target, name)) for name in names]
    folders: set[str] = set()
    if all(is_local(uri) for pair in pairs for uri in pair):
        # Content first: a new name for what is not there yet could survive alone.
        disk.sync([filesystem(source)[1] for source, _ in pairs])
        folders = {os.path.dirname(filesystem(target)[1]) for _, target in pairs}
    for folder in sorted(folders):
        disk.make_folder(folder)
    left = {os.path.dirname(filesystem(source)[1]) for source, _ in pairs} if folders else set()
    if folders:
        for pair in pairs:
            _move(*pair)
    else:
        with ThreadPoolExecutor(_TOGETHER) as pool:
            list(pool.map(lambda pair: _move(*pair), pairs))
        _remove_files([old for old, _ in pairs])
    disk.sync(folders)
    disk.sync(left - folders)  # else what was moved away could be there again beside what takes its place


def _move(source: str, target: str) -> None:
    """Within a local disk a rename; elsewhere a copy, and what was copied is still to be removed."""
    if is_local(source) and is_local(target):
        os.replace(filesystem(source)[1], filesystem(target)[1])
    else:
        copy_file(source, target)


def _remove_files(uris: list[str]) -> None:
    """Remove files that are there; of S3 a thousand with one request."""
    if not uris or not _is_s3(fs := filesystem(uris[0])[0]):
        for uri in uris:
            remove(uri)
        return
    places = [fs.split_path(filesystem(uri)[1])[:2] for uri in uris]
    for start in range(0, len(places), 1000):
        bucket, some = places[start][0], places[start : start + 1000]
        fs.call_s3(
            "delete_objects", Bucket=bucket, Delete={"Objects": [{"Key": key} for _, key in some], "Quiet": True}
        )


def remove(uri: str) -> None:
    """Remove a file or a folder with all that it holds; nothing happens where there is none."""
    fs, path = filesystem(uri)
    if not fs.exists(path):
        return
    if is_local(uri):
        fs.rm(path, recursive=True)
        disk.sync([os.path.dirname(path)])
    elif not has_magic(path):
        fs.rm(path, recursive=True)
    else:  # `rm` would read `[` and `*` in the path as a pattern
        for name in fs.find(path):
            fs.rm_file(name)


def cache_folder() -> Path:
    """This machine's folder for copies that can be made again: $OMNILOOM_CACHE, else in the temporary folder."""
    return Path(os.environ.get("OMNILOOM_CACHE", Path(tempfile.gettempdir()) / f"omniloom-cache-{os.getuid()}"))


def localize(uri: str, digest: str, names: Iterable[str] | None = None) -> Path:
    """A local folder with the files of the folder `uri`: itself where it is local, else a cached copy of these files,
    by default of all.

    `digest` names the content (an artifact's fingerprint), so that a copy is made once per machine and content.
    """
    if (path := local_path(uri)) is not None:
        return path
    remove_leftovers(str(cache_folder()))
    return once(cache_folder() / digest, lambda target: copy_tree(uri, str(target), names))


def remove_leftovers(folder: str) -> None:
    """Remove from a local folder what writes that were killed left behind more than a day ago."""
    if not is_local(folder) or not os.path.isdir(path := filesystem(folder)[1]):
        return
    long_ago = time.time() - 86400
    for entry in list(os.scandir(path)):
        with contextlib.suppress(FileNotFoundError):  # a write that lives has ended
            if entry.name.startswith(disk.UNFINISHED) and entry.stat(follow_symlinks=False).st_mtime < long_ago:
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
