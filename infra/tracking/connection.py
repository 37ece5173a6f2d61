"""The first use of a store by a process. In: settings. Out: an `MlflowClient`.

Creating or migrating a database is no transaction on SQLite: one process at a time does it, under a file lock. There a
database that was moved with its folder is also told where its files are now.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from omniloom.infra import secrets
from omniloom.infra.tracking.config import TrackingSettings
from omniloom.infra.tracking.failures import Unreachable, short
from omniloom.infra.tracking.relocation import relocate

# MLflow's modules import one another in circles: two threads that import it at once can deadlock.
_IMPORT = threading.RLock()
_LOCK_SECONDS = 120.0  # a migration takes seconds, on a busy machine many


def open_client(settings: TrackingSettings):
    """An `MlflowClient` of the store; Unreachable where it cannot be had, whatever the reason."""
    with _IMPORT:
        configure_mlflow(settings)
        try:
            from mlflow import MlflowClient

            _keep_secrets()
            with _one_process(settings):
                relocate(settings)
                client = MlflowClient(tracking_uri=settings.uri)
                if settings.database:
                    client.search_registered_models(max_results=1)  # the registry's tables are a store of their own
                return client
        except Exception as error:  # a driver, a schema, a disk: each has a class of its own
            raise Unreachable(short(error)) from error


def configure_mlflow(settings: TrackingSettings) -> None:
    """Set MLflow's patience and noise for this process, before its first import; the user's own settings win."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(settings.request_seconds))),
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):  # migrations, tracebacks, chatter
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _keep_secrets() -> None:
    """MLflow and its HTTP client print addresses in their warnings."""
    for handler in (*logging.getLogger("mlflow").handlers, logging.lastResort):
        if handler is not None:
            secrets.guard(handler)


@contextlib.contextmanager
def _one_process(settings: TrackingSettings) -> Iterator[None]:
    """Hold the file lock of the database while its tables are made or changed; a server does that by itself."""
    if settings.uri.startswith(("http", "databricks")):
        yield
        return
    database = settings.database
    path = database.with_name(f".{database.name}.lock") if database else Path(settings.spool) / ".database.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _locked(file.fileno()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"another process has held {path} for {_LOCK_SECONDS:.0f} s")
            time.sleep(0.05)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a filesystem without locks
        return True
    return True
