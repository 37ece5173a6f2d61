"""The journal: what one process logged for one run, as JSON lines on the local disk.

In: events (dicts). Out: batches of them, in order, with the byte position up to which they were delivered.

A journal lives in `SPOOL/RUN_KEY/`, beside the copies of files that wait with it; an event names such a copy by its
path from there, so that a spool can be moved. Its writer holds a lock on it for as long as it lives, so another
process can tell a journal that is being written from one that was left behind.

A line that a full disk or a crash cut is skipped, counted and told; the lines behind it are whole. Where the position
is not readable all is sent again, which MLflow takes as the same values.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import threading
import uuid
from collections import deque
from collections.abc import Generator
from pathlib import Path

from omniloom.infra import secrets

log = secrets.logger(__name__)

SUFFIX = ".jsonl"
_POSITION = ".sent"
_MOST_WAITING = 100_000  # lines kept in memory while the disk takes none


def run_folder(spool: str, key: str) -> Path:
    """The folder of one run's journals; in the temporary folder where `spool` cannot be written (another machine)."""
    failure: OSError | None = None
    for root in (Path(spool), Path(tempfile.gettempdir()) / f"omniloom-spool-{os.getuid()}"):
        try:
            (root / key).mkdir(parents=True, exist_ok=True)
            if os.access(root / key, os.W_OK):
                return root / key
        except OSError as error:
            failure = error
    raise failure or PermissionError(f"no folder for what waits: {spool} cannot be written")


def replace_text(path: Path, text: str) -> None:
    """Write a small file by rename: a reader sees the old text or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


class Journal:
    """Append and read one journal file. `append` is thread-safe; reading is for one thread at a time."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor = path, descriptor
        self._lock = threading.Lock()
        self._unwritten: deque[bytes] = deque(maxlen=_MOST_WAITING)
        self._torn = False  # the file ends in a part of a line that could not be taken back
        self._position_path = path.with_suffix(_POSITION)
        self.position = self._known_position()
        self._counted = self.position  # damaged lines before it are counted
        self.damaged = 0

    @classmethod
    def create(cls, folder: Path) -> Journal:
        """A new, locked journal in a run's folder."""
        path = folder / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(path, descriptor)

    @classmethod
    def adopt(cls, path: Path) -> Journal | None:
        """The journal of a process that is gone; None where its writer still lives. OSError where it is not to be
        opened."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        found = cls(path, descriptor)
        found._torn = not found._ends_a_line(os.fstat(descriptor).st_size)
        return found

    @property
    def key(self) -> str:
        """The key of the run that this journal belongs to."""
        return self.path.parent.name

    @property
    def closed(self) -> bool:
        return self._descriptor < 0

    def append(self, event: dict) -> None:
        """Note an event. Where the disk does not take it, it waits in memory and OSError says so."""
        line = json.dumps(event, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._lock:
            if not self.closed:
                self._unwritten.append(line)
                self._write_waiting()

    def _write_waiting(self) -> None:
        while self._unwritten:
            self._write(b"\n" if self._torn else b"")
            self._torn = False
            self._write(self._unwritten[0])
            self._unwritten.popleft()

    def _write(self, data: bytes) -> None:
        """All of `data`, or none of it; what cannot be taken back is ended by the next write."""
        size = os.fstat(self._descriptor).st_size
        rest = data
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            if len(rest) < len(data):
                try:
                    os.ftruncate(self._descriptor, size)
                except OSError:
                    self._torn = True
            raise

    def stage_file(self, source: Path) -> str:
        """A copy of a file or folder that stays until it is delivered, whatever becomes of the original. Returns its
        path from the journal's folder."""
        target = self._stage() / source.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
        return target.relative_to(self.path.parent).as_posix()

    def stage_bytes(self, data: bytes, name: str) -> str:
        target = self._stage() / name
        target.write_bytes(data)
        return target.relative_to(self.path.parent).as_posix()

    def _stage(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.path.parent, prefix=f"{self.path.stem}-"))

    def pending(self) -> Generator[tuple[dict, int]]:
        """Undelivered events, each with the position behind it. What is no event is skipped and counted; a last line
        without its end is left for its writer to finish."""
        with self._lock, contextlib.suppress(OSError):
            if not self.closed:
                self._write_waiting()
        position = self.position
        if self.closed:
            return
        with os.fdopen(os.dup(self._descriptor), "rb") as file:  # it holds what was written, even if it was removed
            file.seek(position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                position += len(line)
                event = _parsed(line)
                if event is not None:
                    yield event, position
                elif position > self._counted and line.strip():
                    self.damaged += 1
                self._counted = max(self._counted, position)

    def commit(self, position: int) -> None:
        """Events before `position` are delivered."""
        self.position = position
        with contextlib.suppress(OSError):  # it stays known in memory; another process would send them again
            replace_text(self._position_path, str(position))

    def delivered(self) -> bool:
        return next(iter(self.pending()), None) is None and not self.waits_for_disk

    @property
    def waits_for_disk(self) -> bool:
        return bool(self._unwritten)

    def _known_position(self) -> int:
        """Where the last delivery ended. A position that was cut or is no line's start counts for nothing."""
        try:
            position = int(self._position_path.read_text())
            return position if 0 <= position <= self.path.stat().st_size and self._ends_a_line(position) else 0
        except (OSError, ValueError):
            return 0

    def _ends_a_line(self, position: int) -> bool:
        return position == 0 or os.pread(self._descriptor, 1, position - 1) == b"\n"

    def close(self, remove: bool) -> None:
        """Let go of the journal; with `remove`, delete it and what waited with it."""
        with self._lock:
            if self.closed:
                return
            try:
                if remove:
                    self._remove()
            finally:
                os.close(self._descriptor)
                self._descriptor = -1

    def _remove(self) -> None:
        if lost := self.damaged + self._torn:
            log.warning("tracking: %d damaged lines of %s are left out", lost, self.path)
        for leftover in self.path.parent.iterdir():
            if not leftover.name.startswith(self.path.stem):
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _parsed(line: bytes) -> dict | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None
