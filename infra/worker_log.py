"""A log file per worker: what one process of a stage prints, warns of and tells of its progress, line by line.

In: the URI of the folder of a stage's logs, and the worker's name. Out: FOLDER/NAME.log, which grows while the worker
runs. What native code prints is in it too, up to the last line before a crash. Where the storage is remote the file is
written on the worker's machine and stored now and then, and at the end.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omniloom.infra import storage
from omniloom.infra.secrets import redact, traceback

_STORED_SECONDS = 30.0  # between two copies of a file to a remote storage
_FOLLOW_SECONDS = 0.5
_OUT, _ERR = 1, 2  # file descriptors

_open: list[Path] = []  # the file of this process, where it has one
_folders: list[str] = []  # and the URI of the folder


def name_of_process() -> str:
    """Of a worker that has no rank: `worker-HOST-PID`."""
    return f"worker-{socket.gethostname()}-{os.getpid()}"


def write(text: str) -> None:
    """A line with the time, where this process has a log."""
    if _open:
        with contextlib.suppress(OSError), _open[0].open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {redact(text)}\n")


def folder() -> str | None:
    """The URI of the folder of this process's log, for the workers that it starts; None where it has none."""
    return _folders[0] if _folders else None


@contextlib.contextmanager
def kept(uri: str | None, name: str) -> Iterator[None]:
    """In the block this process has the log NAME.log in the folder `uri`; an error that leaves it is in there with its
    traceback. A log that cannot be written stops nothing, and None asks for none."""
    path = _path(uri, name) if uri and not _open else None
    if path is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(_stored(path, storage.join(str(uri), path.name)))
        stack.enter_context(_captured(path))
        _open.append(path)
        _folders.append(str(uri))
        stack.callback(_open.clear)
        stack.callback(_folders.clear)
        write(f"{name}: process {os.getpid()} on {socket.gethostname()}")
        try:
            yield
        except BaseException as error:
            write(traceback(error))
            raise
        write("ended")


def _path(uri: str, name: str) -> Path | None:
    try:
        local = storage.local_path(uri) or Path(tempfile.mkdtemp(prefix="omniloom-log-"))
        local.mkdir(parents=True, exist_ok=True)
        (local / f"{name}.log").touch()
        return local / f"{name}.log"
    except OSError:
        return None


@contextlib.contextmanager
def _stored(path: Path, uri: str) -> Iterator[None]:
    """In the block, and at its end, the file is stored where it does not lie already."""
    if storage.local_path(uri) is not None:
        yield
        return

    def store() -> None:
        with contextlib.suppress(Exception):  # each filesystem has its own
            storage.copy_file(str(path), uri)

    with _repeated(store, _STORED_SECONDS):
        yield
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


@contextlib.contextmanager
def _captured(path: Path) -> Iterator[None]:
    """In the block this process's standard output and error go to the file, and from there to where they went before:
    Ray shows them, where it is asked to. Python's own are redacted on the way."""
    flushing = [stream for stream in (sys.stdout, sys.stderr) if stream is not None]
    for stream in flushing:
        stream.flush()
    before = [os.dup(number) for number in (_OUT, _ERR)]
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    shown = path.stat().st_size

    def follow() -> None:
        nonlocal shown
        with path.open("rb") as written:
            written.seek(shown)
            while chunk := written.read(1 << 16):
                shown += len(chunk)
                os.write(before[1], chunk)

    streams = sys.stdout, sys.stderr
    try:
        for number in (_OUT, _ERR):
            os.dup2(file, number)
        sys.stdout, sys.stderr = _Redacted(_OUT), _Redacted(_ERR)
        with _repeated(follow, _FOLLOW_SECONDS):
            yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = streams
        for number, descriptor in zip((_OUT, _ERR), before, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(file)


class _Redacted(io.TextIOBase):
    """Text to a file descriptor, a whole line at a time, without secrets."""

    encoding = "utf-8"

    def __init__(self, number: int):
        self._number = number
        self._rest = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            lines, newline, rest = (self._rest + text).rpartition("\n")
            self._rest = rest
            if newline:
                self._put(lines + newline)
        return len(text)

    def flush(self) -> None:
        with self._lock:
            text, self._rest = self._rest, ""
            if text:
                self._put(text)

    def _put(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._number, redact(text).encode(errors="replace"))

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def _repeated(act: Callable[[], Any], seconds: float) -> Iterator[None]:
    """In the block `act` is called every so many seconds by a thread, and once more at its end."""
    ended = threading.Event()

    def go() -> None:
        while not ended.wait(seconds):
            with contextlib.suppress(OSError):
                act()

    thread = threading.Thread(target=go, daemon=True, name="worker-log")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(OSError):
            act()
