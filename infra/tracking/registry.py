"""The model registry. In: a bundle folder on the local disk. Out: an MLflow model and, under a name, its version.

The model's code is a file of ours that MLflow stores as source (models from code), so no pickle is made or read.
"""
from __future__ import annotations

import runpy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra.tracking.courier import courier
from infra.tracking.runs import RunHandle
from infra.tracking.sink import Sink, Unsendable

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


def register_model(run: RunHandle, bundle: str | Path, code: str | Path, name: str, fingerprint: str,
                   alias: str | None = None, metrics: Mapping[str, float] | None = None,
                   example: list[dict[str, Any]] | None = None, timeout: float = 300.0,
                   no_worse: Mapping[str, Better] | None = None) -> RegisteredModel | None:
    """Log a bundle folder as a pyfunc model of the run and register it as `name`.

    `code` is a file that ends in `mlflow.models.set_model(...)` and defines `signature()`, which gives an
    `mlflow.models.ModelSignature`; its model finds the folder as the artifact `bundle`. `fingerprint` names the
    content: a model that is registered with it already is not copied again, and only gets `alias`. `alias` (such as
    `champion`) moves to this version: pass it only when evaluation passed. `no_worse` names metrics and which way each
    is better: where the alias has come to a version that is better by one of them before this is delivered, it stays
    there. `example`: some input rows, of text and numbers, that the registry shows.
    Returns None where tracking did not take it within `timeout` seconds; it then waits like all else, and `bundle`
    has to stay where it is until then.
    """
    for field, path in (("bundle", Path(bundle)), ("code", Path(code))):
        if not path.exists():
            raise ValueError(f"{field}: {path} does not exist")
    run._append("model", bundle=str(Path(bundle).absolute()), code=str(Path(code).absolute()), name=name,
                fingerprint=fingerprint, alias=alias, metrics=dict(metrics or {}), example=example,
                no_worse=dict(no_worse or {}))
    if not run.flush(timeout):
        return None
    return courier(run.settings).sink.registered.get((name, fingerprint))


def send_model(sink: Sink, run_id: str, experiment_id: str, event: dict) -> None:
    """Deliver a `model` event: log, register, alias. A version with the same fingerprint is used again."""
    import mlflow

    mlflow.set_tracking_uri(sink.settings.uri)  # MLflow resolves `models:/` sources by the process's own setting
    client, name, fingerprint = sink.client, event["name"], event["fingerprint"]
    version = _find_version(client, name, fingerprint)
    if version is not None:
        if model_id := _logged_model(client.get_model_version(name, version)):
            _log_metrics(client, run_id, model_id, event["metrics"])
    else:
        with tempfile.TemporaryDirectory(prefix="omniloom-model-") as folder:
            target = Path(folder) / _MODEL_NAME
            try:
                _save(target, run_id, event)
            except Exception as error:  # the bundle's fault or its code's, whatever class MLflow gives it
                raise Unsendable(f"{event['bundle']} could not be registered as {name}: {error}") from error
            model_id = _upload(client, target, run_id, experiment_id, event)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        version = client.create_model_version(name, f"models:/{model_id}", run_id, {FINGERPRINT_TAG: fingerprint},
                                              model_id=model_id).version
    if event["alias"] and not _held_by_better(client, event):
        client.set_registered_model_alias(name, event["alias"], version)
    sink.registered[name, fingerprint] = RegisteredModel(name, str(version))


def _find_version(client, name: str, fingerprint: str) -> str | None:
    if not client.search_registered_models(f"name = '{name}'"):
        return None
    for found in client.search_model_versions(f"name = '{name}'"):
        if found.tags.get(FINGERPRINT_TAG) == fingerprint:
            return found.version
    return None


def _save(target: Path, run_id: str, event: dict) -> None:
    """Write the model in MLflow's layout to the local folder `target`."""
    import pandas
    from mlflow import pyfunc
    from mlflow.models import Model

    pyfunc.save_model(str(target), python_model=event["code"], artifacts={"bundle": event["bundle"]},
                      pip_requirements=_requirements(), mlflow_model=Model(run_id=run_id),
                      signature=runpy.run_path(event["code"])["signature"](),
                      input_example=pandas.DataFrame(event["example"]) if event["example"] else None)


def _upload(client, target: Path, run_id: str, experiment_id: str, event: dict) -> str:
    """Store the folder as a logged model of the run, with its metrics; returns the model's id."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    logged = client.create_logged_model(experiment_id, name=_MODEL_NAME, source_run_id=run_id,
                                        tags={FINGERPRINT_TAG: event["fingerprint"]}, model_type="omniloom")
    status = LoggedModelStatus.FAILED
    try:
        saved = Model.load(str(target))
        saved.model_id = logged.model_id
        saved.save(str(target / "MLmodel"))
        client.log_model_artifacts(logged.model_id, str(target))
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(logged.model_id, status)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _log_metrics(client, run_id, logged.model_id, event["metrics"])
    return logged.model_id


def _log_metrics(client, run_id: str, model_id: str, metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric
    from mlflow.utils.time import get_current_time_millis

    if metrics:
        now = get_current_time_millis()
        client.log_batch(run_id, [Metric(key, value, now, 0, model_id=model_id) for key, value in metrics.items()],
                         synchronous=True)


def _logged_model(version) -> str | None:
    """The id of the logged model that a version is of; some stores keep it in the version's source alone."""
    prefix = "models:/m-"
    return version.model_id or (version.source[len("models:/"):] if (version.source or "").startswith(prefix) else None)


def champion(run: RunHandle, name: str, alias: str) -> Champion | None:
    """The version of `name` that holds the alias; None where none does. `Unreachable` where the store does not answer,
    MLflow's own error where it refuses."""
    sink = Sink(run.settings)
    return sink.call(_champion, sink.client, name, alias)


def _champion(client, name: str, alias: str) -> Champion | None:
    if not client.search_registered_models(f"name = '{name}'"):
        return None
    if (number := client.get_registered_model(name).aliases.get(alias)) is None:
        return None
    version = client.get_model_version(name, number)
    model_id = _logged_model(version)
    logged = client.get_logged_model(model_id).metrics if model_id else ()
    # A model that was measured again has figures of each time; the last ones are meant.
    metrics = {metric.key: metric.value for metric in sorted(logged or (), key=lambda metric: metric.timestamp)}
    return Champion(str(number), version.tags.get(FINGERPRINT_TAG), metrics)


def _held_by_better(client, event: dict) -> bool:
    """Whether the alias is held by another model that is better by one of the event's `no_worse`, or is not known to be
    no better."""
    wanted = event.get("no_worse") or {}
    held = _champion(client, event["name"], event["alias"]) if wanted else None
    if held is None or held.fingerprint == event["fingerprint"]:
        return False
    nan = float("nan")  # is no better and no worse than anything
    pairs = ((event["metrics"].get(key, nan), held.metrics.get(key, nan), better) for key, better in wanted.items())
    return not all(own >= theirs if better == "higher" else own <= theirs for own, theirs, better in pairs)


def _requirements() -> list[str]:
    """The distribution that the model's code imports, at this version: nothing is guessed by loading the model."""
    from importlib.metadata import version

    return [f"omniloom=={version('omniloom')}", f"mlflow=={version('mlflow')}"]
