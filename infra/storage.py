"""Storage: URIs on any fsspec filesystem, with the few operations that the workflow needs.

A path in OmniLoom is a URI string (`/data/run`, `file:///data/run`, `s3://bucket/run`, `memory://run`); relative
local paths are made absolute once, where the config is read. Credentials and endpoints come from the environment
in fsspec's own way (`FSSPEC_S3_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...), so that workers on other machines find them.
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.core import has_magic, split_protocol

# Listings must be true at once for every reader: a lease or a manifest that another process wrote a second ago
# must be seen, so remote filesystems run without their listings cache.
_UNCACHED = {"s3": {"use_listings_cache": False}, "s3a": {"use_listings_cache": False}}
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
    if is_local(uri):
        path = split_protocol(uri)[1]
        return os.path.abspath(os.path.expanduser(path))
    return uri.rstrip("/") if not uri.endswith("://") else uri


def join(uri: str, *parts: str) -> str:
    return posixpath.join(uri, *parts)


def local_path(uri: str) -> Path | None:
    """The local path of a local URI, else None."""
    return Path(split_protocol(uri)[1]) if is_local(uri) else None


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return fs.exists(path)


def read_bytes(uri: str) -> bytes:
    fs, path = filesystem(uri)
    return fs.cat_file(path)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file at once: a reader sees the old content or the new one, never a part.

    Object stores give that by themselves; on a local disk a temporary file is renamed into place.
    """
    fs, path = filesystem(uri)
    fs.makedirs(fs._parent(path), exist_ok=True)
    if not is_local(uri):
        fs.pipe_file(path, data)
        return
    with _temporary(path, data) as temporary:
        os.replace(temporary, path)


@contextlib.contextmanager
def _temporary(path: str, data: bytes) -> Iterator[str]:
    """A file with the content, flushed to the disk, beside the local `path`; listings do not show it."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        yield temporary
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_json(uri: str) -> dict | None:
    """The parsed JSON file, or None where there is none."""
    try:
        return json.loads(read_bytes(uri))
    except FileNotFoundError:
        return None


def write_json(uri: str, value: dict) -> None:
    write_bytes(uri, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode())


def create_exclusively(uri: str, data: bytes) -> bool:
    """Create the file only if nobody has; False where it is there already. Atomic on local disks, in memory, on S3.

    The file appears with its content: a hard link on a local disk, one conditional request on an object store.
    """
    fs, path = filesystem(uri)
    fs.makedirs(fs._parent(path), exist_ok=True)
    try:
        if is_local(uri):
            with _temporary(path, data) as temporary:
                os.link(temporary, path)
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
    return {name.removeprefix(prefix): info["size"] for name, info in sorted(found.items())
            if not posixpath.basename(name).startswith(".tmp-")}


def sha256(uri: str) -> str:
    fs, path = filesystem(uri)
    digest = hashlib.sha256()
    with fs.open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def copy_file(source: str, target: str) -> None:
    """Copy one file between any two filesystems."""
    source_fs, source_path = filesystem(source)
    target_fs, target_path = filesystem(target)
    target_fs.makedirs(target_fs._parent(target_path), exist_ok=True)
    if type(source_fs) is type(target_fs):
        source_fs.cp_file(source_path, target_path)  # `copy` would read `[` and `*` in a name as a pattern
        return
    with source_fs.open(source_path, "rb") as reader, target_fs.open(target_path, "wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def move_file(source: str, target: str) -> None:
    """Move one file; within a local disk that is a rename."""
    if is_local(source) and is_local(target):
        _, target_path = filesystem(target)
        os.makedirs(os.path.dirname(target_path), exist_ok=True)
        os.replace(filesystem(source)[1], target_path)
        return
    copy_file(source, target)
    remove(source)


def copy_tree(source: str, target: str) -> None:
    for name in list_files(source):
        copy_file(join(source, name), join(target, name))


def remove(uri: str) -> None:
    """Remove a file or a folder with all that it holds; nothing happens where there is none."""
    fs, path = filesystem(uri)
    if not fs.exists(path):
        return
    if is_local(uri) or not has_magic(path):
        fs.rm(path, recursive=True)
    else:  # `rm` would read `[` and `*` in the path as a pattern
        for name in fs.find(path):
            fs.rm_file(name)


def cache_folder() -> Path:
    """This machine's folder for copies that can be made again: $OMNILOOM_CACHE, else in the temporary folder."""
    return Path(os.environ.get("OMNILOOM_CACHE", Path(tempfile.gettempdir()) / f"omniloom-cache-{os.getuid()}"))


def localize(uri: str, digest: str) -> Path:
    """A local folder with the files of the folder `uri`: itself where it is local, else a cached copy.

    `digest` names the content (an artifact's fingerprint), so that a copy is made once per machine and content.
    """
    if (path := local_path(uri)) is not None:
        return path
    cache = cache_folder()
    target = cache / digest
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=cache, prefix=".tmp-"))
    copy_tree(uri, str(staging))
    try:
        staging.rename(target)
    except OSError:  # another process was first with the same content
        shutil.rmtree(staging)
    return target
