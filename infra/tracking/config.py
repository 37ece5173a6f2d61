"""Where runs are tracked. In: the `tracking` part of a pipeline's config and its storage. Out: `TrackingSettings`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from omniloom.infra.errors import InputError
from omniloom.infra.fields import PATH, PLACEMENT, path_to
from omniloom.infra.secrets import hide_credentials, redact
from omniloom.infra.tracking.address import absolute_store, check_driver, check_uri, sqlite_path, sqlite_uri

VARIABLE = "MLFLOW_TRACKING_URI"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # of training, not of language models' traces
# What MLflow refuses in a name (`/`, `:`, `.` alone), what its searches cannot quote, and what `models:/NAME@alias`
# reads as something else.
_MODEL_NAME = r"""^(?!\.$|\.\.)(?=.*\S)[^/:'"`\\@?#%\x00-\x1f\x7f]+$"""


class TrackingConfig(BaseModel):
    """The `tracking` section of a pipeline's config.

    Nothing here changes what a stage computes, so none of it enters a fingerprint.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    uri: str | None = Field(None, json_schema_extra=path_to("store") | PLACEMENT)
    """MLflow server or database, such as http://host:5000. Without it: $MLFLOW_TRACKING_URI, else SQLite beside the
    artifacts."""
    experiment: str = Field("omniloom", min_length=1)
    """MLflow experiment."""
    artifact_root: str | None = Field(None, json_schema_extra=PATH | PLACEMENT)
    """Where a new experiment keeps files; by default beside a SQLite database, or wherever the server keeps them."""
    register_as: str | None = None
    """Name in the model registry, the pipeline's where nothing is given; null: no model is registered. None of / : ' "
    @ ? # % and no backslash."""
    system_metrics: bool = True
    """Sample CPU, memory, disk, network and GPUs during a stage."""
    sample_seconds: float = Field(5.0, gt=0)
    """Seconds between samples of the system metrics."""
    request_seconds: float = Field(10.0, gt=0)
    """Patience with one request to the tracking server."""
    flush_seconds: float = Field(20.0, gt=0)
    """Patience at the end of a run; what is not sent by then waits on disk for the next run."""

    @field_validator("uri")
    @classmethod
    def _known_store(cls, uri: str | None) -> str | None:
        return uri if uri is None else check_uri(uri)

    @field_validator("artifact_root")
    @classmethod
    def _without_secrets(cls, root: str | None) -> str | None:
        if root is not None and redact(root) != root:
            raise ValueError(
                "expected a place without a user, a password or a signature, since MLflow shows it; give "
                "credentials to its client by the environment"
            )
        return root

    @field_validator("register_as")
    @classmethod
    def _name_that_the_registry_takes(cls, name: str | None) -> str | None:
        if name is not None and not re.match(_MODEL_NAME, name):
            raise ValueError(f"expected a name without / : ' \" ` @ ? # % or a backslash, such as digits, got {name!r}")
        return name


@dataclass(frozen=True)
class TrackingSettings:
    """A resolved `TrackingConfig`: plain, picklable, with absolute paths.

    `spool` is the local folder of the journals; `artifact_root` None leaves the place of files to the server, and
    `beside` says that it lies beside the SQLite database and moves with it. `uri` may hold a password: show `shown`.
    """

    uri: str = field(repr=False)
    experiment: str
    artifact_root: str | None
    spool: str
    register_as: str | None = None
    system_metrics: bool = True
    sample_seconds: float = 5.0
    request_seconds: float = 10.0
    flush_seconds: float = 20.0
    beside: bool = False

    @property
    def shown(self) -> str:
        """The store's address without secrets."""
        return redact(self.uri)

    @property
    def database(self) -> Path | None:
        """The file of a SQLite store."""
        return sqlite_path(self.uri)


def resolve_tracking(config: TrackingConfig, storage: str) -> TrackingSettings:
    """Fill in what the config leaves open; starts nothing and imports no mlflow.

    With local storage the database is `STORAGE/mlflow.db` and files go to `STORAGE/mlflow/`. With remote or
    in-memory storage, where SQLite cannot live, both go to `runs/mlflow` under the working folder: give a cluster a
    `tracking.uri`. A database URI keeps its files in `mlflow-artifacts` next to a SQLite file. Raises InputError that
    names `tracking.uri`, or the variable, where no run can be tracked there.
    """
    from omniloom.infra.storage import is_local, local_path

    beside = local_path(storage) if is_local(storage) else None
    home = (beside / "mlflow" if beside else Path("runs/mlflow")).absolute()
    database = (beside / "mlflow.db" if beside else home / "mlflow.db").absolute()
    uri = _chosen(config) or sqlite_uri(database)
    artifact_root = config.artifact_root
    uri = absolute_store(uri)
    if path := sqlite_path(uri):
        artifact_root = (
            artifact_root or (home / "artifacts" if path == database else path.parent / "mlflow-artifacts").as_uri()
        )
    return TrackingSettings(
        uri=uri,
        experiment=config.experiment,
        artifact_root=artifact_root,
        spool=str(home / "spool"),
        register_as=config.register_as,
        system_metrics=config.system_metrics,
        sample_seconds=config.sample_seconds,
        request_seconds=config.request_seconds,
        flush_seconds=config.flush_seconds,
        beside=path is not None and config.artifact_root is None,
    )


def _chosen(config: TrackingConfig) -> str | None:
    """The store that the config or the environment names, looked at."""
    name, uri = ("tracking.uri", config.uri) if config.uri else (f"${VARIABLE}", os.environ.get(VARIABLE))
    if not uri:
        return None
    hide_credentials(uri)
    try:
        check_uri(uri)
        check_driver(uri)
    except ValueError as error:
        unset = f"; unset {VARIABLE}, or set tracking.uri" if not config.uri else ""
        raise InputError(f"{error}{unset}", field=name) from None
    return uri
