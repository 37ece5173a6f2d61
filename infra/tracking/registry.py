"""The model registry. In: a bundle folder on the local disk. Out: an MLflow model and, under a name, its version.

The model's code is a file of ours that MLflow stores as source (models from code), so no pickle is made or read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omniloom.infra.errors import InputError
from omniloom.infra.tracking.address import sqlite_path
from omniloom.infra.tracking.config import TrackingSettings
from omniloom.infra.tracking.courier import courier
from omniloom.infra.tracking.failures import short
from omniloom.infra.tracking.registration import (
    EVALUATION_TAG,
    FINGERPRINT_TAG,
    Champion,
    RegisteredModel,
    held_by_alias,
)
from omniloom.infra.tracking.runs import RunHandle
from omniloom.infra.tracking.sink import Sink

Better = Literal["higher", "lower"]


def register_model(
    run: RunHandle,
    bundle: str | Path,
    code: str | Path,
    name: str,
    fingerprint: str,
    alias: str | None = None,
    metrics: Mapping[str, float] | None = None,
    example: list[dict[str, Any]] | None = None,
    timeout: float = 300.0,
    no_worse: Mapping[str, Better] | None = None,
    better_than: str | None = None,
    dataset: tuple[str, str] | None = None,
    trained_by: str | None = None,
    description: str | None = None,
) -> tuple[RegisteredModel | None, str | None]:
    """Log a bundle folder as a pyfunc model of the run and register it as `name`.

    `code` is a file that ends in `mlflow.models.set_model(...)` and defines `signature()`, which gives an
    `mlflow.models.ModelSignature`, and `LIBRARIES`, the distributions that answering imports; its model finds the
    folder as the artifact `bundle`. This tree is stored with it: it answers where no omniloom is. `fingerprint` names
    the content: a model that is registered with it already is not copied again, and only gets `alias`. `alias` (such as
    `champion`) moves to this version: pass it only when evaluation passed. `no_worse` names metrics and which way each
    is better: where the alias has come to a version that is better by one of them before this is delivered, it stays
    there, unless that is of the fingerprint `better_than`, which this was found better than. `example`: some input
    rows, of text and numbers, that the registry shows; `description`: Markdown of the version's page. `dataset`: name
    and digest, as they were logged as an input of the run, of what `metrics` were measured on. `trained_by`: MLflow's
    id of the run that trained the model, whose page then leads to it.
    Returns (the version, None), or (None, why not) where the registry refuses it, or where tracking did not take it
    within `timeout` seconds; it then waits like all else, and `bundle` has to stay where it is until then.
    """
    for field, path in (("bundle", Path(bundle)), ("code", Path(code))):
        if not path.exists():
            raise ValueError(f"{field}: {path} does not exist")
    run.log_model(
        str(Path(bundle).absolute()),
        str(Path(code).absolute()),
        name,
        fingerprint,
        alias,
        metrics or {},
        example,
        no_worse or {},
        better_than,
        dataset,
        trained_by,
        description,
    )
    arrived = run.flush(timeout)
    sink = courier(run.settings).sink
    if found := sink.registered.get((name, fingerprint)):
        return found, None
    if why := sink.not_registered.get((name, fingerprint)):
        return None, why
    return None, (
        "tracking could not note it"
        if arrived
        else f"tracking at {run.settings.shown} is away; it waits for the next run"
    )


def champion(run: RunHandle, name: str, alias: str) -> Champion | None:
    """The version of `name` that holds the alias; None where none does. `Unreachable` or `Refused` where the store does
    not say."""
    return held_by_alias(Sink(run.settings), name, alias)


def run_files(run: RunHandle, run_id: str, folder: str, target: str | Path) -> Path | None:
    """A folder of another run's files, copied below `target`; None where that run has none. `Unreachable` or `Refused`
    where the store does not say."""
    sink = Sink(run.settings)
    if not sink.call("list_artifacts", run_id, folder):
        return None
    return Path(sink.call("download_artifacts", run_id, folder, str(target)))


def bundle_folder(uri: str) -> Path:
    """The bundle of a registered model, `models:/NAME@ALIAS` or `models:/NAME/VERSION`, in a local folder. The store is
    the one that $MLFLOW_TRACKING_URI names. InputError where it has no such model."""
    import mlflow
    from mlflow.models import Model

    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        flavor = Model.load(str(folder)).flavors["python_function"]
        return folder / flavor["artifacts"]["bundle"]["path"]
    except (mlflow.MlflowException, OSError, KeyError) as error:
        raise InputError(
            f"is no model of this project in the registry: {short(error)}", field="MODEL", file=uri
        ) from None


def origin(uri: str) -> tuple[str | None, list[str]]:
    """Of a registered model, `models:/NAME@ALIAS` or `models:/NAME/VERSION` of the store that $MLFLOW_TRACKING_URI
    names: the fingerprint of the training that made it, and the storages that it may lie in. InputError where there is
    no such model."""
    import mlflow

    client = mlflow.MlflowClient()
    version = _version(client, uri)
    try:
        run = client.get_run(version.run_id or "")
        parent = run.data.tags.get("mlflow.parentRunId")
        params = client.get_run(parent).data.params if parent else run.data.params
    except mlflow.MlflowException as error:
        raise _no_model(uri, error) from None
    beside = sqlite_path(mlflow.get_tracking_uri())  # a storage that was moved took its database along
    places = [str(beside.parent)] if beside else []
    return version.tags.get(FINGERPRINT_TAG), [*places, *filter(None, [params.get("storage")])]


def measured_by(uri: str) -> str | None:
    """The id of the run that measured a registered model last, by its name as `origin` takes it; None where that is not
    known. InputError where there is no such model."""
    import mlflow

    return _version(mlflow.MlflowClient(), uri).tags.get(EVALUATION_TAG)


def _version(client: Any, uri: str) -> Any:
    import mlflow

    name, at, alias = uri.removeprefix("models:/").partition("@")
    try:
        if at:
            return client.get_model_version_by_alias(name, alias)
        name, _, number = name.rpartition("/")
        return client.get_model_version(name, number)
    except mlflow.MlflowException as error:
        raise _no_model(uri, error) from None


def _no_model(uri: str, error: Exception) -> InputError:
    return InputError(f"is no model of this project in the registry: {short(error)}", field="MODEL", file=uri)


def downloaded(uri: str, target: str | Path, name: str) -> Path:
    """Files of a run below `target`. InputError that names `name` where the run has none."""
    import mlflow

    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(target)))
    except (mlflow.MlflowException, OSError) as error:
        raise InputError(f"has no files at {uri}: {short(error)}", file=name) from None


def versions(settings: TrackingSettings, fingerprints: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """By fingerprint, the versions of that content in the registry: {"name", "version", "aliases"}. `Unreachable` or
    `Refused` where the store does not say."""
    sink = Sink(settings)
    found: dict[str, list[dict[str, Any]]] = {}
    for fingerprint in fingerprints:
        held = sink.call("search_model_versions", f"tag.`{FINGERPRINT_TAG}` = '{fingerprint}'")
        for version in sorted(held, key=lambda version: (version.name, int(version.version))):
            aliases = sink.call("get_model_version", version.name, version.version).aliases  # a search tells none
            facts = {"name": version.name, "version": str(version.version), "aliases": list(aliases)}
            found.setdefault(fingerprint, []).append(facts)
    return found
