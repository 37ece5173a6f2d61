"""MLflow's pages: where they are, and the server that shows them. In: `TrackingSettings`. Out: addresses that open in
the view for training, and a process that serves them on this machine alone.

MLflow opens as a tool for language models' traces: an experiment says by a tag that it is of training, a link by its
`workflowType`.
"""

from __future__ import annotations

import os
import socket
import sys

from omniloom.infra.errors import InputError
from omniloom.infra.secrets import without_user_info
from omniloom.infra.tracking.config import TrackingSettings

_VIEW = "workflowType=machine_learning"
_HOST = "127.0.0.1"


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
    """Print where the runs are; for a database, become its server on 127.0.0.1. InputError for a port that is taken, or
    a database that is not there."""
    if settings.uri.startswith("http"):
        print(f"the runs are at {experiment_page(settings, without_user_info(settings.uri))}")
        return
    if settings.database is not None and not settings.database.is_file():
        raise InputError(f"has no runs yet: {settings.database} does not exist; run the pipeline first", field="CONFIG")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port} of {_HOST} cannot be had: {error}; take another", field="--port") from None
    address = experiment_page(settings, f"http://{_HOST}:{port}")
    print(f"MLflow of {settings.shown}, until Ctrl-C: {address}", flush=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(port), "--workers", "1"]
    # Its job queues are for judges of language models, and take ten processes and two gigabytes. The store's URI may
    # hold a password, which a command line would show to everybody on the machine.
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_BACKEND_STORE_URI": settings.uri,
    }
    if settings.artifact_root:
        environment["MLFLOW_DEFAULT_ARTIFACT_ROOT"] = settings.artifact_root
    os.execve(sys.executable, command, environment)
