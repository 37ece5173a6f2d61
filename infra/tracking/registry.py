"""The model registry. In: a bundle folder on the local disk. Out: an MLflow model and, under a name, its version.

The model's code is a file of ours that MLflow stores as source (models from code), so no pickle is made or read.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omniloom.infra.errors import InputError
from omniloom.infra.secrets import logger
from omniloom.infra.tracking.config import VARIABLE
from omniloom.infra.tracking.courier import courier
from omniloom.infra.tracking.failures import Refused, Unreachable, short
from omniloom.infra.tracking.runs import RunHandle
from omniloom.infra.tracking.sink import Sink

log = logger(__name__)

FINGERPRINT_TAG = "omniloom.fingerprint"
_MODEL_NAME = "model"
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry; `uri` is what `mlflow.pyfunc.load_model` takes."""

    name: str
    version: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Champion:
    """The version that holds an alias, the fingerprint of its model, and the figures it was registered with last."""

    version: str
    fingerprint: str | None
    metrics: Mapping[str, float]


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
) -> tuple[RegisteredModel | None, str | None]:
    """Log a bundle folder as a pyfunc model of the run and register it as `name`.

    `code` is a file that ends in `mlflow.models.set_model(...)` and defines `signature()`, which gives an
    `mlflow.models.ModelSignature`; its model finds the folder as the artifact `bundle`. `fingerprint` names the
    content: a model that is registered with it already is not copied again, and only gets `alias`. `alias` (such as
    `champion`) moves to this version: pass it only when evaluation passed. `no_worse` names metrics and which way each
    is better: where the alias has come to a version that is better by one of them before this is delivered, it stays
    there. `example`: some input rows, of text and numbers, that the registry shows.
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


def send_model(sink: Sink, run_id: str, experiment_id: str, event: dict) -> None:
    """Deliver a `model` event: log, register, alias. A version or a logged model with the same fingerprint is used
    again; what a registration that fails has stored is removed."""
    with _process_wide(sink.settings.uri):
        _send(sink, run_id, experiment_id, event)


@contextlib.contextmanager
def _process_wide(uri: str) -> Iterator[None]:
    """MLflow resolves `models:/` sources by the process's own setting, which it also writes to the environment: both
    are put back."""
    import mlflow

    known = os.environ.get(VARIABLE)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if known is not None:
            os.environ[VARIABLE] = known


def _send(sink: Sink, run_id: str, experiment_id: str, event: dict) -> None:
    name, fingerprint = event["name"], event["fingerprint"]
    version = _find_version(sink, name, fingerprint)
    if version is not None:
        if model_id := _logged_model(sink.call("get_model_version", name, version)):
            _log_metrics(sink, run_id, model_id, event["metrics"])
    else:
        if not _exists(sink, name):  # a name that is refused is refused before anything is stored
            sink.call("create_registered_model", name)
        model_id = _find_logged(sink, experiment_id, fingerprint) or _log(sink, run_id, experiment_id, event)
        try:
            version = sink.call(
                "create_model_version",
                name,
                f"models:/{model_id}",
                run_id,
                {FINGERPRINT_TAG: fingerprint},
                model_id=model_id,
            ).version
        except Unreachable:
            raise
        except Exception as error:  # MLflow has tried several times by itself
            _discard(sink, model_id)
            raise Refused(short(error)) from error
    if model_id:
        # As MLflow's own `register_model` does: else the UI says of the logged model that it is not registered.
        versions = json.dumps([{"name": name, "version": str(version)}])
        with contextlib.suppress(Refused):
            sink.call("set_logged_model_tags", model_id, {"mlflow.modelVersions": versions})
    if event["alias"] and not _held_by_better(sink, event):
        sink.call("set_registered_model_alias", name, event["alias"], version)
    sink.not_registered.pop((name, fingerprint), None)
    sink.registered[name, fingerprint] = RegisteredModel(name, str(version))


def _exists(sink: Sink, name: str) -> bool:
    try:
        sink.call("get_registered_model", name)
    except Refused:
        return False
    return True


def _find_version(sink: Sink, name: str, fingerprint: str) -> str | None:
    if not _exists(sink, name):
        return None
    token = None
    while True:
        page = sink.call("search_model_versions", f"name = {_quoted(name)}", page_token=token)
        for found in page:
            if found.tags.get(FINGERPRINT_TAG) == fingerprint:
                return found.version
        if not (token := page.token):
            return None


def _quoted(text: str) -> str:
    """Text as MLflow's filters take it: they know two kinds of quotes and no escape."""
    if "'" in text and '"' in text:
        raise Refused(f"{text} holds both kinds of quotes, which MLflow cannot search for")
    return f'"{text}"' if "'" in text else f"'{text}'"


def _find_logged(sink: Sink, experiment_id: str, fingerprint: str) -> str | None:
    """A logged model of this content that is complete and was left by a registration that was interrupted."""
    found = sink.call(
        "search_logged_models", [experiment_id], filter_string=f"tags.`{FINGERPRINT_TAG}` = {_quoted(fingerprint)}"
    )
    return next(
        (model.model_id for model in found if str(getattr(model.status, "value", model.status)) == "READY"), None
    )


def _log(sink: Sink, run_id: str, experiment_id: str, event: dict) -> str:
    """Make the model's folder and store it; returns the logged model's id."""
    with tempfile.TemporaryDirectory(prefix="omniloom-model-") as folder:
        target = Path(folder) / _MODEL_NAME
        try:
            _save(target, run_id, event)
        except Exception as error:  # the bundle's fault or its code's, whatever class MLflow gives it
            raise Refused(f"{event['bundle']} could not be made a model: {short(error)}") from error
        return _upload(sink, target, run_id, experiment_id, event)


def _save(target: Path, run_id: str, event: dict) -> None:
    """Write the model in MLflow's layout to the local folder `target`."""
    import pandas
    from mlflow import pyfunc
    from mlflow.models import Model

    pyfunc.save_model(
        str(target),
        python_model=event["code"],
        artifacts={"bundle": event["bundle"]},
        pip_requirements=_requirements(),
        mlflow_model=Model(run_id=run_id),
        signature=runpy.run_path(event["code"])["signature"](),
        input_example=pandas.DataFrame(event["example"]) if event["example"] else None,
    )


def _upload(sink: Sink, target: Path, run_id: str, experiment_id: str, event: dict) -> str:
    """Store the folder as a logged model of the run, with its metrics; returns the model's id."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    logged = sink.call(
        "create_logged_model",
        experiment_id,
        name=_MODEL_NAME,
        source_run_id=run_id,
        tags={FINGERPRINT_TAG: event["fingerprint"]},
        model_type="omniloom",
    )
    try:
        saved = Model.load(str(target))
        saved.model_id = logged.model_id
        saved.save(str(target / "MLmodel"))
        sink.client.log_model_artifacts(logged.model_id, str(target))
        sink.call("finalize_logged_model", logged.model_id, LoggedModelStatus.READY)
    except Exception:
        _discard(sink, logged.model_id)
        raise
    sink.call("log_outputs", run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _log_metrics(sink, run_id, logged.model_id, event["metrics"])
    return logged.model_id


def _log_metrics(sink: Sink, run_id: str, model_id: str, metrics: Mapping[str, float | None]) -> None:
    from mlflow.entities import Metric
    from mlflow.utils.time import get_current_time_millis

    if figures := {key: value for key, value in metrics.items() if value is not None}:
        now = get_current_time_millis()
        sink.call(
            "log_batch",
            run_id,
            [Metric(key, value, now, 0, model_id=model_id) for key, value in figures.items()],
            synchronous=True,
        )


def _logged_model(version) -> str | None:
    """The id of the logged model that a version is of; some stores keep it in the version's source alone."""
    source = version.source or ""
    return version.model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else None)


def champion(run: RunHandle, name: str, alias: str) -> Champion | None:
    """The version of `name` that holds the alias; None where none does. `Unreachable` or `Refused` where the store does
    not say."""
    return _champion(Sink(run.settings), name, alias)


def _champion(sink: Sink, name: str, alias: str) -> Champion | None:
    if not _exists(sink, name):
        return None
    if (number := sink.call("get_registered_model", name).aliases.get(alias)) is None:
        return None
    version = sink.call("get_model_version", name, number)
    model_id = _logged_model(version)
    logged = sink.call("get_logged_model", model_id).metrics if model_id else ()
    # A model that was measured again has figures of each time; the last ones are meant.
    metrics = {metric.key: metric.value for metric in sorted(logged or (), key=lambda metric: metric.timestamp)}
    return Champion(str(number), version.tags.get(FINGERPRINT_TAG), metrics)


def _held_by_better(sink: Sink, event: dict) -> bool:
    """Whether the alias is held by another model that is better by one of the event's `no_worse`, or is not known to be
    no better."""
    wanted = event.get("no_worse") or {}
    held = _champion(sink, event["name"], event["alias"]) if wanted else None
    if held is None or held.fingerprint == event["fingerprint"]:
        return False
    own, theirs = event["metrics"], held.metrics
    return not all(
        key in theirs
        and own.get(key) is not None
        and (own[key] >= theirs[key] if better == "higher" else own[key] <= theirs[key])
        for key, better in wanted.items()
    )


def _discard(sink: Sink, model_id: str) -> None:
    """Take a logged model and its files away again; what the store does not let go is told of."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        location = sink.call("get_logged_model", model_id).artifact_location
        get_artifact_repository(location, tracking_uri=sink.settings.uri).delete_artifacts()
    except Exception as error:
        log.warning("tracking: files of the model %s, which was not registered, stay: %s", model_id, short(error))
    try:
        sink.call("delete_logged_model", model_id)
    except Exception as error:
        log.warning("tracking: the model %s, which was not registered, stays logged: %s", model_id, short(error))


def _requirements() -> list[str]:
    """The distribution that the model's code imports, at this version: nothing is guessed by loading the model."""
    from importlib.metadata import version

    return [f"omniloom=={version('omniloom')}", f"mlflow=={version('mlflow')}"]


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
