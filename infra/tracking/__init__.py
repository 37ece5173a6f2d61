"""Experiment tracking in MLflow that can neither stop nor slow a run.

In: what a run logs, through a picklable `RunHandle`, from any process. Out: MLflow runs (one parent per pipeline run,
one child per stage), with metrics, images, files, datasets and registered models.

Every call only appends a line to a journal on the local disk (`journal`); a thread carries the lines to MLflow in
batches (`courier`, `sink`). While MLflow is away the lines wait, and `replay` sends those of a process that died.
Importing this package does not import mlflow.
"""

from omniloom.infra.tracking.config import TrackingConfig, TrackingSettings, resolve_tracking
from omniloom.infra.tracking.courier import replay
from omniloom.infra.tracking.probe import probe
from omniloom.infra.tracking.registration import Champion, RegisteredModel
from omniloom.infra.tracking.registry import champion, register_model, run_files
from omniloom.infra.tracking.relocation import relocate
from omniloom.infra.tracking.runs import RunHandle, Tracker, close_stale, find_runs

__all__ = [
    "Champion",
    "RegisteredModel",
    "RunHandle",
    "Tracker",
    "TrackingConfig",
    "TrackingSettings",
    "champion",
    "close_stale",
    "find_runs",
    "probe",
    "register_model",
    "relocate",
    "replay",
    "resolve_tracking",
    "run_files",
]
