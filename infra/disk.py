"""A local disk, so that what is declared complete survives a power cut.

A file that was written, or renamed into place, is at first in the machine's memory alone: a manifest that reaches the
disk before the files it names describes files of 0 bytes. So whoever declares something complete syncs first what it
names, files and the folders that hold their names, and only then writes the declaration, which is synced too.

One sync costs milliseconds, many at once little more, because the disk takes them together: hence the threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".tmp-"  # how the names of files and folders begin that are being written
_TOGETHER = 16
_NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP)  # of file systems that sync a folder's names by themselves


def sync(paths: Iterable[str | Path]) -> None:
    """The content of these files, and the names in these folders, are on the disk when this returns."""
    names = [str(path) for path in paths]
    if len(names) == 1:
        _sync(names[0])
    elif names:
        with ThreadPoolExecutor(min(_TOGETHER, len(names))) as pool:
            list(pool.map(_sync, names))


def sync_tree(folder: str | Path) -> None:
    """All files and folders below `folder`, its own name and those above it are on the disk, whoever made them; nothing
    happens where there is none."""
    files, folders = [], []
    for root, _, names in os.walk(folder):
        folders.append(root)
        files += [os.path.join(root, name) for name in names]
    if folders:
        sync(files)
        sync([*folders, *_above(os.path.abspath(folder))])


def _above(folder: str) -> list[str]:
    """The folders above this one, as far as they are on the same disk and can be read."""
    found, device = [], os.stat(folder).st_dev
    while (above := os.path.dirname(folder)) != folder and os.stat(above).st_dev == device:
        found += [above] if os.access(above, os.R_OK) else []
        folder = above
    return found


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDERS or not os.path.isdir(path):
            raise
    finally:
        os.close(handle)


def make_folder(path: str | Path) -> None:
    """The folder and those above it exist, and so do their names on the disk."""
    missing, at = [], os.path.abspath(path)
    while not os.path.isdir(at):
        missing.append(at)
        at = os.path.dirname(at)
    os.makedirs(path, exist_ok=True)
    sync({os.path.dirname(folder) for folder in missing})


@contextlib.contextmanager
def writing(path: str, exclusive: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which takes its place at `path` at the end of the block, complete and on the disk: a reader sees
    what was there before or all of the new content. `exclusive`: FileExistsError where there is one already."""
    folder = os.path.dirname(path)
    make_folder(folder)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(handle, 0o644)
            os.fsync(handle)
        (os.link if exclusive else os.replace)(temporary, path)
        sync([folder])
    finally:
        Path(temporary).unlink(missing_ok=True)
