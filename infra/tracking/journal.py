"""The journal: what one process logged for one run, as JSON lines on the local disk.

In: events (dicts). Out: batches of them, in order, with the byte position up to which they were delivered.

A journal lives in `SPOOL/RUN_KEY/`, beside the copies of files that wait with it. Its writer holds a lock on it for
as long as it lives, so another process can tell a journal that is being written from one that was left behind.
"""
from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".jsonl"
_POSITION = ".sent"


def spool_folder(spool: str, key: str) -> Path:
    """The folder of one run's journals; in the temporary folder where `spool` cannot be written (another machine)."""
    for root in (Path(spool), Path(tempfile.gettempdir()) / "omniloom-spool"):
        try:
            (root / key).mkdir(parents=True, exist_ok=True)
            return root / key
        except OSError as error:
            failure = error
    raise failure


class Journal:
    """Append and read one journal file. `append` is thread-safe; reading is for one thread at a time."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor = path, descriptor
        self._lock = threading.Lock()
        self._position_path = path.with_suffix(_POSITION)
        self.position = int(self._position_path.read_text()) if self._position_path.exists() else 0

    @classmethod
    def create(cls, folder: Path) -> Journal:
        """A new, locked journal in a run's folder."""
        path = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(path, descriptor)

    @classmethod
    def adopt(cls, path: Path) -> Journal | None:
        """The journal of a process that is gone; None where its writer still lives."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    @property
    def key(self) -> str:
        """The key of the run that this journal belongs to."""
        return self.path.parent.name

    @property
    def closed(self) -> bool:
        return self._descriptor < 0

    def append(self, event: dict) -> None:
        line = json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._lock:
            if not self.closed:
                os.write(self._descriptor, line)

    def stage_file(self, source: Path) -> Path:
        """A copy of a file or folder that stays until it is delivered, whatever becomes of the original."""
        folder = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f"{self.path.stem}-"))
        target = folder / source.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
        return target

    def stage_bytes(self, data: bytes, name: str) -> Path:
        target = Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f"{self.path.stem}-")) / name
        target.write_bytes(data)
        return target

    def pending(self) -> Iterator[tuple[dict, int]]:
        """Undelivered events, each with the position behind it. A line that a crash cut short is left out."""
        position = self.position
        with open(self.path, "rb") as file:
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                position += len(line)
                yield json.loads(line), position

    def commit(self, position: int) -> None:
        """Events before `position` are delivered."""
        self.position = position
        self._position_path.write_text(str(position))

    def delivered(self) -> bool:
        return next(iter(self.pending()), None) is None

    def close(self, remove: bool) -> None:
        """Let go of the journal; with `remove`, delete it and what waited with it."""
        with self._lock:
            if self.closed:
                return
            if remove:
                for leftover in self.path.parent.glob(f"{self.path.stem}*"):
                    if leftover.is_dir():
                        shutil.rmtree(leftover, ignore_errors=True)
                    else:
                        leftover.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
