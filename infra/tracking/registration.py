"""Delivery of a model to the registry. In: a `model` event and the store. Out: a logged model and a version of it, with
its alias; what a registration that fails has stored is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from omniloom.infra.secrets import logger
from omniloom.infra.tracking.charts import EVALUATION, charted, plain
from omniloom.infra.tracking.config import VARIABLE, TrackingSettings
from omniloom.infra.tracking.failures import Refused, Unreachable, short
from omniloom.infra.tree import copy_tree

log = logger(__name__)

FINGERPRINT_TAG = "omniloom.fingerprint"
EVALUATION_TAG = "omniloom.evaluation"  # the run that measured a version last
MOVING_TAG = "omniloom.moving"  # of a version that asks for an alias right now: moving|moved, the alias, and when
_MOVING_SECONDS = 10.0  # for others that move the alias at once
_STALE_SECONDS = 60.0  # a version that has said so for so long has died
_MODEL_NAME = "model"


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
    """The version that holds an alias, the fingerprint of its model, the figures it was registered with last, and the
    id of the run that measured them, where that is known."""

    version: str
    fingerprint: str | None
    metrics: Mapping[str, float]
    evaluation: str | None = None


class Store(Protocol):
    """What a delivery needs of a connection to a tracking store (`sink.Sink`)."""

    settings: TrackingSettings
    registered: dict[tuple[str, str], object]
    """(model name, fingerprint) -> `RegisteredModel`"""
    not_registered: dict[tuple[str, str], str]
    """(model name, fingerprint) -> why"""

    @property
    def client(self) -> Any: ...

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any: ...


def send_model(store: Store, run_id: str, experiment_id: str, event: dict) -> None:
    """Deliver a `model` event: log, register, alias. A version or a logged model with the same fingerprint is used
    again; what a registration that fails has stored is removed."""
    with _process_wide(store.settings.uri):
        _send(store, run_id, experiment_id, event)


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
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # which unsets it; the annotation lacks None
        if known is not None:
            os.environ[VARIABLE] = known


def _send(store: Store, run_id: str, experiment_id: str, event: dict) -> None:
    name, fingerprint = event["name"], event["fingerprint"]
    version = _find_version(store, name, fingerprint)
    if version is not None:
        if model_id := _logged_model(store.call("get_model_version", name, version)):
            _log_metrics(store, run_id, model_id, event)
    else:
        _have(store, name)  # a name that is refused is refused before anything is stored
        model_id = _find_logged(store, experiment_id, fingerprint) or _log(store, run_id, experiment_id, event)
        try:
            version = store.call(
                "create_model_version",
                name,
                f"models:/{model_id}",
                run_id,
                {FINGERPRINT_TAG: fingerprint},
                description=event.get("description"),
                model_id=model_id,
            ).version
        except Unreachable:
            raise
        except Exception as error:  # MLflow has tried several times by itself
            _discard(store, model_id)
            raise Refused(short(error)) from error
    if model_id:
        # As MLflow's own `register_model` does: else the UI says of the logged model that it is not registered.
        versions = json.dumps([{"name": name, "version": str(version)}])
        with contextlib.suppress(Refused):
            store.call("set_logged_model_tags", model_id, {"mlflow.modelVersions": versions})
    store.call("set_model_version_tag", name, version, EVALUATION_TAG, run_id)
    if event["alias"]:
        _move_alias(store, event, str(version))
    store.not_registered.pop((name, fingerprint), None)
    store.registered[name, fingerprint] = RegisteredModel(name, str(version))


def _have(store: Store, name: str) -> None:
    """Create the registered model, unless it is there or another process is first."""
    if _exists(store, name):
        return
    try:
        store.call("create_registered_model", name)
    except Refused:
        if not _exists(store, name):
            raise


def _exists(store: Store, name: str) -> bool:
    try:
        store.call("get_registered_model", name)
    except Refused:
        return False
    return True


def _find_version(store: Store, name: str, fingerprint: str) -> str | None:
    if not _exists(store, name):
        return None
    token = None
    while True:
        page = store.call("search_model_versions", f"name = {_quoted(name)}", page_token=token)
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


def _find_logged(store: Store, experiment_id: str, fingerprint: str) -> str | None:
    """A logged model of this content that is complete and was left by a registration that was interrupted."""
    found = store.call(
        "search_logged_models", [experiment_id], filter_string=f"tags.`{FINGERPRINT_TAG}` = {_quoted(fingerprint)}"
    )
    return next(
        (model.model_id for model in found if str(getattr(model.status, "value", model.status)) == "READY"), None
    )


def _log(store: Store, run_id: str, experiment_id: str, event: dict) -> str:
    """Make the model's folder and store it; returns the logged model's id."""
    with tempfile.TemporaryDirectory(prefix="omniloom-model-") as folder:
        target = Path(folder) / _MODEL_NAME
        try:
            _save(target, run_id, event)
        except Exception as error:  # the bundle's fault or its code's, whatever class MLflow gives it
            raise Refused(f"{event['bundle']} could not be made a model: {short(error)}") from error
        return _upload(store, target, run_id, experiment_id, event)


def _save(target: Path, run_id: str, event: dict) -> None:
    """Write the model in MLflow's layout to the local folder `target`: with the tree that its code imports, as that is
    on no index, and the libraries that both import as requirements."""
    import pandas
    from mlflow import pyfunc
    from mlflow.models import Model

    code = runpy.run_path(event["code"])
    with tempfile.TemporaryDirectory(prefix="omniloom-code-") as folder:
        pyfunc.save_model(
            str(target),
            python_model=event["code"],
            code_paths=[str(copy_tree(Path(folder)))],
            artifacts={"bundle": event["bundle"]},
            pip_requirements=_requirements(code["LIBRARIES"]),
            mlflow_model=Model(run_id=run_id),
            signature=code["signature"](),
            input_example=pandas.DataFrame(event["example"]) if event["example"] else None,
        )


def _upload(store: Store, target: Path, run_id: str, experiment_id: str, event: dict) -> str:
    """Store the folder as a logged model of the run, with its metrics; returns the model's id."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    logged = store.call(
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
        store.client.log_model_artifacts(logged.model_id, str(target))
        store.call("finalize_logged_model", logged.model_id, LoggedModelStatus.READY)
    except Exception:
        _discard(store, logged.model_id)
        raise
    shown = [LoggedModelOutput(logged.model_id, step=0)]
    store.call("log_outputs", run_id, shown)
    parent = store.call("get_run", run_id).data.tags.get("mlflow.parentRunId")
    for other in filter(None, (parent, event.get("trained_by"))):
        with contextlib.suppress(Refused):  # of another store, or deleted
            store.call("log_outputs", other, shown)
    _log_metrics(store, run_id, logged.model_id, event)
    return logged.model_id


def _log_metrics(store: Store, run_id: str, model_id: str, event: Mapping[str, Any]) -> None:
    """The event's figures of the model, measured on the event's dataset where it names one."""
    from mlflow.entities import Metric
    from mlflow.utils.time import get_current_time_millis

    if figures := {key: value for key, value in event["metrics"].items() if value is not None}:
        now, (dataset, digest) = get_current_time_millis(), event.get("dataset") or (None, None)
        shown = charted(figures, EVALUATION)
        values = [Metric(key, value, now, 0, model_id, dataset, digest) for key, value in shown.items()]
        store.call("log_batch", run_id, values, synchronous=True)


def _logged_model(version) -> str | None:
    """The id of the logged model that a version is of; some stores keep it in the version's source alone."""
    source = version.source or ""
    return version.model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else None)


def held_by_alias(store: Store, name: str, alias: str) -> Champion | None:
    if not _exists(store, name):
        return None
    if (number := store.call("get_registered_model", name).aliases.get(alias)) is None:
        return None
    return _measured(store, store.call("get_model_version", name, number))


def _measured(store: Store, version: Any) -> Champion:
    model_id = _logged_model(version)
    logged = store.call("get_logged_model", model_id).metrics if model_id else ()
    # A model that was measured again has figures of each time; the last ones are meant.
    metrics = {plain(metric.key): metric.value for metric in sorted(logged or (), key=lambda metric: metric.timestamp)}
    return Champion(str(version.version), version.tags.get(FINGERPRINT_TAG), metrics, version.tags.get(EVALUATION_TAG))


def _move_alias(store: Store, event: dict, version: str) -> None:
    """Move the alias to the version, unless it is held by a better one.

    No store moves an alias only if it has not moved since it was read. So a version says that it is moving and then
    that it has moved, waits for others that are moving, and looks at what came of it: of two that move at once one at
    least sees the other, and the alias ends at the better.
    """
    name, alias = event["name"], event["alias"]

    def says(state: str) -> None:
        store.call("set_model_version_tag", name, version, MOVING_TAG, f"{state} {alias} {time.time():.0f}")

    says("moving")
    try:
        if not _held_by_better(store, event):
            store.call("set_registered_model_alias", name, alias, version)
        says("moved")
        deadline = time.monotonic() + _MOVING_SECONDS
        while (rivals := _rivals(store, event, version)) and any(moving for _, moving in rivals):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        _agree(store, event, version, [rival for rival, _ in rivals])
    finally:
        store.call("delete_model_version_tag", name, version, MOVING_TAG)


def _rivals(store: Store, event: dict, version: str) -> list[tuple[Champion, bool]]:
    """The other versions that ask for the alias now, and whether each has yet to move it."""
    found = []
    for other in store.call(
        "search_model_versions", f"name = {_quoted(event['name'])}", order_by=["version_number DESC"]
    ):
        state, _, rest = other.tags.get(MOVING_TAG, "").partition(" ")
        alias, _, at = rest.rpartition(" ")
        if alias == event["alias"] and str(other.version) != version and time.time() - float(at) < _STALE_SECONDS:
            found.append((_measured(store, other), state == "moving"))
    return found


def _agree(store: Store, event: dict, version: str, rivals: Sequence[Champion]) -> None:
    """Where the alias is held by one of those that moved at once, give it to the best of them; of two that are each
    better by something, to the first."""
    wanted = event.get("no_worse") or {}
    rivals = [rival for rival in rivals if rival.fingerprint != event.get("better_than")]
    held = held_by_alias(store, event["name"], event["alias"]) if rivals and wanted else None
    if held is None or held.version not in {version, *(rival.version for rival in rivals)}:
        return
    best = Champion(version, event["fingerprint"], event["metrics"], None)
    for rival in rivals:
        mutual = _better(best.metrics, rival.metrics, wanted)
        if _better(rival.metrics, best.metrics, wanted) and (not mutual or int(rival.version) < int(best.version)):
            best = rival
    if best.version != held.version:
        store.call("set_registered_model_alias", event["name"], event["alias"], best.version)


def _better(one: Mapping[str, Any], other: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    """Whether one is better than the other by a figure, or has one that the other lacks."""
    return any(
        one.get(key) is not None
        and (other.get(key) is None or (one[key] > other[key] if better == "higher" else one[key] < other[key]))
        for key, better in wanted.items()
    )


def _held_by_better(store: Store, event: dict) -> bool:
    """Whether the alias is held by another model than the one that this was found better than, which is better by one
    of the event's `no_worse`, or is not known to be no better."""
    wanted = event.get("no_worse") or {}
    held = held_by_alias(store, event["name"], event["alias"]) if wanted else None
    if held is None or held.fingerprint in (event["fingerprint"], event.get("better_than")):
        return False
    own, theirs = event["metrics"], held.metrics
    return not all(
        key in theirs
        and own.get(key) is not None
        and (own[key] >= theirs[key] if better == "higher" else own[key] <= theirs[key])
        for key, better in wanted.items()
    )


def _discard(store: Store, model_id: str) -> None:
    """Take a logged model and its files away again; what the store does not let go is told of."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        location = store.call("get_logged_model", model_id).artifact_location
        get_artifact_repository(location, tracking_uri=store.settings.uri).delete_artifacts()
    except Exception as error:
        log.warning("tracking: files of the model %s, which was not registered, stay: %s", model_id, short(error))
    try:
        store.call("delete_logged_model", model_id)
    except Exception as error:
        log.warning("tracking: the model %s, which was not registered, stays logged: %s", model_id, short(error))


def _requirements(libraries: Sequence[str]) -> list[str]:
    """The libraries at the versions that are installed here, without what names a build (`+cpu`), which indexes do not
    know. Nothing is guessed by loading the model."""
    from importlib.metadata import version

    return [f"{name}=={version(name).partition('+')[0]}" for name in ("mlflow", *libraries)]
