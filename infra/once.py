"""What a machine makes once for all of its processes: a file or a folder that whoever asks first makes, while the
others wait for it. A lock that a dead process held is free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from omniloom.infra import disk


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, which `make` is given a path to make at where nobody has: there is all of it or nothing. What `make`
    leaves must be on the disk."""
    if target.exists():
        return target
    disk.make_folder(target.parent)
    with locked(target.with_name(f"{target.name}.lock")):
        if not target.exists():
            staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=disk.UNFINISHED))
            try:
                make(staging / target.name)
                (staging / target.name).rename(target)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
            disk.sync([target.parent])
    return target


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Alone among the processes and threads of this machine that ask for the same file, which is there meanwhile."""
    handle = _open(file)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # while it is held: who waits for it then finds that it is another file, or none
        os.close(handle)


def _open(file: Path) -> int:
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(file).st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)
