"""Copies of remote files on this machine's disk, up to so many bytes: one copy a machine, whoever asks, and those that
were not asked for longest go first. A file that is removed while a process has it mapped stays readable there.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from omniloom.infra import storage
from omniloom.infra.once import locked, once

_ROOM = 0.9  # of the disk's free bytes, where no limit is given


class BoundedCache:
    """Files in one folder below this machine's cache. `limit` is in bytes; by default most of what is free."""

    def __init__(self, name: str, limit: int | None = None):
        self.folder, self.limit = storage.cache_folder() / name, limit
        self._unseen = 0  # bytes that this process has added since it last looked at the folder
        self._known = 0  # bytes in it then
        self._counting = threading.Lock()

    def file(self, name: str) -> Path:
        return self.folder / name

    def get(self, name: str, fetch: Callable[[Path], None]) -> Path:
        """The file of that name, which `fetch` is given a path to make at where it is not there."""
        target = self.file(name)
        with contextlib.suppress(FileNotFoundError):
            os.utime(target)  # asked for now
            return target

        def made(path: Path) -> None:
            fetch(path)
            self._make_room(path.stat().st_size)

        return once(target, made)

    def _make_room(self, size: int) -> None:
        with self._counting:
            self._unseen += size
            if self._known and self._known + 2 * self._unseen < self._limit():
                return  # other processes add about as much
            with locked(self.folder / "evict.lock"):
                self._evict(size)
            self._unseen = 0

    def _limit(self) -> int:
        if self.limit is None:
            disk = os.statvfs(self.folder)
            self.limit = self._known + int(_ROOM * disk.f_bavail * disk.f_frsize)
        return self.limit

    def _evict(self, size: int) -> None:
        """Remove what was asked for longest ago until `size` more bytes have room."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file() and not entry.name.endswith(".lock"):
                    facts = entry.stat()
                    found.append((facts.st_mtime_ns, facts.st_size, entry.path))
        self._known = sum(held for _, held, _ in found)
        for _, held, path in sorted(found):
            if self._known + size <= self._limit():
                break
            Path(path).unlink(missing_ok=True)
            self._known -= held
        self._known += size
