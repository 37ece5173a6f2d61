"""Record: what a run did, in STORAGE/runs/ID.json. A run that was killed has its record closed by the next run.

    {"id", "pipeline", "status", "started", "ended", "owner", "renewed_unix", "stages": {NAME: {"status", ...}},
     "artifacts": {NAME: fingerprint}}

`artifacts` are those that the run uses or makes: while it runs nobody deletes them.

`status` is running, finished, failed or killed. A running run renews its record, by which others see that it lives.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from omniloom.infra import owner, storage
from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact
from omniloom.pipelines.failures import Pruned

_RENEWAL_SECONDS = 60.0
_STALE_SECONDS = 600.0  # not renewed for so long, a run of another machine counts as dead
_RECENT = 100  # records looked at: each run closes the dead among the newest, so older ones are closed


class Record:
    """Use as a context manager around a run: its end writes how the run ended. Raises `InputError` where the storage
    takes no files."""

    def __init__(self, root: str, pipeline: str, artifacts: Mapping[str, str] | None = None):
        self.id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        self.root = root
        self._content: dict[str, Any] = {
            "id": self.id,
            "pipeline": pipeline,
            "status": "running",
            "started": _now(),
            "owner": owner.this_process(),
            "stages": {},
            "artifacts": dict(artifacts or {}),
        }
        self._written = 0.0

    def __enter__(self) -> Record:
        try:
            self._write()
        except Exception as error:  # each filesystem has its own for read-only, unauthorised, full
            raise InputError(
                f"{self.root} cannot be written: {type(error).__name__}: {error}", field="storage"
            ) from error
        with contextlib.suppress(Exception):  # old records are no reason not to run
            close_killed(self.root)
        return self

    def uses(self, artifacts: Mapping[str, str]) -> None:
        """Note down what the run uses from here on."""
        self._content["artifacts"] = dict(artifacts)
        self._write()

    def stage(self, name: str, **facts: Any) -> None:
        self._content["stages"][name] = facts
        self._write()

    def renew(self) -> None:
        """To be called often: writes once a minute, and fails in silence."""
        if time.monotonic() - self._written > _RENEWAL_SECONDS:
            with contextlib.suppress(Exception):
                self._write()

    def __exit__(self, kind: type | None, *rest) -> None:
        ended = kind is not None and issubclass(kind, KeyboardInterrupt | Pruned)
        status = "finished" if kind is None else "killed" if ended else "failed"
        self._content |= {"status": status, "ended": _now()}
        with contextlib.suppress(*([Exception] if kind else [])):  # what ended the run is what is to be told
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._content["renewed_unix"] = time.time()
        storage.write_json(storage.join(self.root, "runs", f"{self.id}.json"), redact(self._content))


def close_killed(root: str) -> list[str]:
    """Mark the records of runs that died without ending them as killed; returns their ids."""
    folder, closed = storage.join(root, "runs"), []
    names = [name for name in storage.list_files(folder) if name.endswith(".json") and "/" not in name]
    for name in sorted(names)[-_RECENT:]:
        record = storage.read_json(storage.join(folder, name))
        if record and record["status"] == "running" and not _lives(record):
            storage.write_json(storage.join(folder, name), {**record, "status": "killed", "ended": _now()})
            closed.append(record["id"])
    return closed


def under_way(root: str) -> list[dict[str, Any]]:
    """The records of the runs that live."""
    folder = storage.join(root, "runs")
    names = [name for name in storage.list_files(folder) if name.endswith(".json") and "/" not in name]
    found = (storage.read_json(storage.join(folder, name)) for name in sorted(names)[-_RECENT:])
    return [record for record in found if record and record["status"] == "running" and _lives(record)]


def _lives(record: dict) -> bool:
    lives = owner.lives(record.get("owner", ""))
    if lives is not None:
        return lives
    started = datetime.fromisoformat(record["started"]).timestamp()
    return time.time() - record.get("renewed_unix", started) < _STALE_SECONDS


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
