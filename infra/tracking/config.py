"""Where runs are tracked. In: the `tracking` part of a pipeline's config and its storage. Out: `TrackingSettings`."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


class TrackingConfig(BaseModel):
    """The `tracking` section of a pipeline's config.

    Nothing here changes what a stage computes, so none of it enters a fingerprint.
    """
    model_config = ConfigDict(extra="forbid")

    uri: str | None = Field(None, description="MLflow server or database, such as http://host:5000. Without it: "
                                              "$MLFLOW_TRACKING_URI, else SQLite beside the artifacts")
    experiment: str = Field("omniloom", min_length=1, description="MLflow experiment")
    artifact_root: str | None = Field(None, description="where a new experiment keeps files; by default beside a "
                                                        "SQLite database, or wherever the server keeps them")
    register_as: str | None = Field(None, min_length=1, description="name in the model registry; none: no model is "
                                                                    "registered")
    system_metrics: bool = Field(True, description="sample CPU, memory, disk, network and GPUs during a stage")
    sample_seconds: float = Field(5.0, gt=0, description="seconds between samples of the system metrics")
    request_seconds: float = Field(10.0, gt=0, description="patience with one request to the tracking server")
    flush_seconds: float = Field(20.0, gt=0, description="patience at the end of a run; what is not sent by then "
                                                         "waits on disk for the next run")

    @field_validator("uri")
    @classmethod
    def _known_store(cls, uri: str | None) -> str | None:
        if uri is not None and uri.split(":", 1)[0].split("+", 1)[0] not in _SCHEMES:
            raise ValueError(f"expected one of {', '.join(s + ':' for s in _SCHEMES)}, got {uri!r}")
        return uri


@dataclass(frozen=True)
class TrackingSettings:
    """A resolved `TrackingConfig`: plain, picklable, with absolute paths.

    `spool` is the local folder of the journals; `artifact_root` None leaves the place of files to the server.
    """
    uri: str
    experiment: str
    artifact_root: str | None
    spool: str
    register_as: str | None = None
    system_metrics: bool = True
    sample_seconds: float = 5.0
    request_seconds: float = 10.0
    flush_seconds: float = 20.0


def resolve_tracking(config: TrackingConfig, storage: str) -> TrackingSettings:
    """Fill in what the config leaves open; starts nothing and imports no mlflow.

    With local storage the database is `STORAGE/mlflow.db` and files go to `STORAGE/mlflow/`. With remote or
    in-memory storage, where SQLite cannot live, both go to `runs/mlflow` under the working folder: give a cluster a
    `tracking.uri`. A database URI keeps its files in `mlflow-artifacts` next to a SQLite file.
    """
    from infra.storage import is_local, local_path

    beside = local_path(storage) if is_local(storage) else None
    home = (beside / "mlflow" if beside else Path("runs/mlflow")).absolute()
    database = (beside / "mlflow.db" if beside else home / "mlflow.db").absolute()
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"
    artifact_root = config.artifact_root
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).absolute()
        uri = f"sqlite:///{path}"
        artifact_root = artifact_root or (home / "artifacts" if path == database
                                          else path.parent / "mlflow-artifacts").as_uri()
    return TrackingSettings(uri=uri, experiment=config.experiment, artifact_root=artifact_root,
                            spool=str(home / "spool"), register_as=config.register_as,
                            system_metrics=config.system_metrics, sample_seconds=config.sample_seconds,
                            request_seconds=config.request_seconds, flush_seconds=config.flush_seconds)
