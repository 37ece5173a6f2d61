"""Whether a tracking store can be used from here. In: settings. Out: yes or no, and in words; changes nothing there."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

from omniloom.infra.tracking.config import TrackingSettings
from omniloom.infra.tracking.connection import configure_mlflow
from omniloom.infra.tracking.failures import short

_NOT_YET = "will be made by the first run"


def probe(settings: TrackingSettings, seconds: float = 2.0) -> tuple[bool, str]:
    """(it can be used, how it answered), after at most about `seconds`. A SQLite file is read, never made."""
    try:
        if settings.database:
            return True, _look_at(settings.database, seconds)
        return True, _ask(settings, seconds)
    except Exception as error:  # each store has classes of its own
        return False, f"{type(error).__name__}: {short(error)}"


def _look_at(database: Path, seconds: float) -> str:
    if not database.exists():
        folder = next(parent for parent in database.parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} cannot be written")
        return _NOT_YET
    if not os.access(database, os.W_OK):
        raise PermissionError(f"{database} cannot be written")
    with contextlib.closing(sqlite3.connect(database.as_uri() + "?mode=ro", uri=True, timeout=seconds)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
            return _NOT_YET
        (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    return f"{runs} runs"


def _ask(settings: TrackingSettings, seconds: float) -> str:
    """One question in a thread of its own: not every driver knows a time limit."""
    hasty = replace(settings, request_seconds=seconds)
    configure_mlflow(hasty)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(seconds)))
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    from mlflow import MlflowClient
    from sqlalchemy import create_engine, text

    answers: list[str | Exception] = []

    def ask() -> None:
        try:
            if settings.uri.startswith(("http", "databricks")):
                MlflowClient(tracking_uri=settings.uri).search_experiments(max_results=1)
            else:
                with contextlib.closing(create_engine(settings.uri).connect()) as connection:
                    connection.execute(text("SELECT 1"))
            answers.append("it answers")
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 0.5)
    answer = answers[0] if answers else TimeoutError(f"no answer in {seconds:g} s")
    if isinstance(answer, Exception):
        raise answer
    return answer
