"""The log of a run, STORAGE/runs/ID.log: what the terminal shows, line by line with the time, and why a stage failed.
The logs of its workers lie beside it, in STORAGE/runs/ID/STAGE (`infra.worker_log`).

Where the storage is remote the file is written on this machine, and stored when the run ends.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

from omniloom.infra import storage
from omniloom.infra.secrets import redact

_SHOWN = 64  # workers' logs of a stage that are read
_CHARACTERS = 1 << 18


class RunLog:
    """Use as a context manager around a run. A log that cannot be written stops nothing."""

    def __init__(self, root: str, run: str):
        self.uri = storage.join(root, "runs", f"{run}.log")
        self.workers = storage.join(root, "runs", run)
        self._local = storage.local_path(self.uri)
        self._path = self._local or Path(tempfile.mkdtemp(prefix="omniloom-log-")) / f"{run}.log"

    def __enter__(self) -> RunLog:
        return self

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {redact(text)}\n")

    def of_stage(self, stage: str) -> str:
        """URI of the folder of the logs of a stage's workers."""
        return storage.join(self.workers, stage)

    def texts(self, stage: str) -> dict[str, str]:
        """The ends of the logs of a stage's workers, by their names."""
        folder = self.of_stage(stage)
        names = sorted(storage.list_files(folder))[:_SHOWN]
        return {name: _end(storage.read_bytes(storage.join(folder, name))) for name in names}

    def text(self) -> str:
        """The end of this log so far."""
        return _end(self._path.read_bytes()) if self._path.exists() else ""

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        if error is not None:
            self.write(f"{type(error).__name__}: {error}")
            cause = error.__cause__
            if cause is not None:  # the worker's own traceback, which the terminal is spared
                self.write(str(cause))
        if self._local is None and self._path.exists():
            with contextlib.suppress(Exception):  # each filesystem has its own
                storage.copy_file(str(self._path), self.uri)


def _end(data: bytes) -> str:
    return redact(data[-_CHARACTERS:].decode(errors="replace"))
