"""MLflow's pages: where they are, and the server that shows them. In: `TrackingSettings`. Out: addresses that open in
the view for training, and what serves them on this machine alone.

MLflow opens as a tool for language models' traces: an experiment says by a tag that it is of training, a link by its
`workflowType`.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3

from omniloom.infra.errors import InputError
from omniloom.infra.secrets import without_user_info
from omniloom.infra.tracking import server
from omniloom.infra.tracking.config import EXPERIMENT_TAGS, TrackingSettings

_VIEW = "workflowType=machine_learning"
_HOST = "127.0.0.1"
_BACKLOG = 128  # connections that wait while MLflow is imported


def page(base: str, experiment_id: str, run_id: str | None = None) -> str:
    """The page of an experiment's runs, or of one run, below the UI's address `base`."""
    path = f"runs/{run_id}" if run_id else "runs"
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/{path}?{_VIEW}"


def artifact_page(experiment_id: str, run_id: str, file: str) -> str:
    """Where a file of a run is shown, from any page of the same UI."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/{file}?{_VIEW}"


def experiment_page(settings: TrackingSettings, base: str) -> str:
    """The experiment's page; the UI's own where the store does not tell the experiment."""
    from omniloom.infra.tracking.failures import Refused, Unreachable
    from omniloom.infra.tracking.sink import Sink

    try:
        return page(base, Sink(settings).experiment_id(settings.experiment))
    except (Refused, Unreachable):
        return f"{base.rstrip('/')}/#/experiments?{_VIEW}"


def serve(settings: TrackingSettings, port: int) -> None:
    """Print where the runs are; of a database, serve them on 127.0.0.1 until Ctrl-C. InputError for a port that is
    taken, and a database that is not there or does not answer."""
    if settings.uri.startswith("http"):
        print(f"the runs are at {experiment_page(settings, without_user_info(settings.uri))}")
        return
    if settings.database is not None and not settings.database.is_file():
        raise InputError(f"has no runs yet: {settings.database} does not exist; run the pipeline first", field="CONFIG")
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((_HOST, port))
            listening.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port} of {_HOST} cannot be had: {error}; take another", field="--port") from None
        base = f"http://{_HOST}:{listening.getsockname()[1]}"
        known = _noted_experiment(settings)
        address = page(base, known) if known else experiment_page(settings, base)
        # A browser that comes before MLflow is imported waits for it: the socket listens already.
        print(f"MLflow of {settings.shown}, until Ctrl-C: {address}", flush=True)
        server.run(settings, listening)


def _noted_experiment(settings: TrackingSettings) -> str | None:
    """The experiment's id in a SQLite file that needs no change, read without MLflow, whose import takes seconds."""
    if settings.database is None:
        return None
    kind, value = next(iter(EXPERIMENT_TAGS.items()))
    query = (
        "SELECT e.experiment_id FROM experiments e JOIN experiment_tags t ON t.experiment_id = e.experiment_id "
        "WHERE e.name = ? AND e.lifecycle_stage = 'active' AND t.key = ? AND t.value = ?"
    )
    try:
        with contextlib.closing(sqlite3.connect(f"{settings.database.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(query, (settings.experiment, kind, value)).fetchone()
    except sqlite3.Error:  # MLflow says what is wrong, or what another version's tables hold
        return None
    return str(found[0]) if found else None
