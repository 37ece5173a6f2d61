"""Delivery: events of a journal into MLflow. In: events in order. Out: MLflow calls, batched; errors told apart.

Event kinds (all times in ms since the epoch): `create` {name, experiment, parent, tags, time}, `metrics` {values:
[[key, value or null for NaN, step, time]]}, `params` {values}, `tags` {values}, `image` {path, key, step, time},
`file` {path, folder}, `dataset` {name, uri, digest, context}, `model` (see `registry`), `finish` {status, time}.
"""
from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from infra.tracking.config import TrackingSettings

log = logging.getLogger(__name__)

KEY_TAG = "omniloom.run_key"
BATCH = 1000  # MLflow's limit of metrics in a request
_PARAM_BATCH = 100  # MLflow's limit of params, and of tags, in a request
# MLflow's modules import one another in circles: two threads that import it at once can deadlock.
_IMPORT = threading.RLock()
_ATTEMPTS = 3  # at an event that fails in a way that is not known here
_MERGED = ("metrics", "params", "tags")
_RUN_FILE = "run.json"
# What a store answers when it is there and the request itself is wrong: sending it again cannot help.
_FINAL = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST",
          "INVALID_STATE"}


class Unreachable(Exception):
    """The tracking store did not answer; the same events may be sent again later."""


class Unsendable(Exception):
    """The event itself is at fault; sending it again cannot help."""


class NotCreated(Unreachable):
    """The store answers, but the run that the events belong to (or its parent) is not there yet."""


def configure_mlflow(settings: TrackingSettings) -> None:
    """Set MLflow's patience and noise for this process, before its first import; the user's own settings win."""
    for name, value in {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
                        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(settings.request_seconds))),
                        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
                        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):  # migrations, tracebacks, chatter
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Sink:
    """A connection to one tracking store. Methods raise `Unreachable` where the store does not answer."""

    def __init__(self, settings: TrackingSettings):
        self.settings = settings
        self._client = None
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, tuple[str, str]] = {}  # run key -> (run id, experiment id)
        self._failures: Counter[str] = Counter()
        self.registered: dict[tuple[str, str], object] = {}  # (model name, fingerprint) -> RegisteredModel

    @property
    def client(self):
        """The `MlflowClient`; made on first use, which may create and migrate a database (seconds)."""
        with _IMPORT:
            if self._client is None:
                configure_mlflow(self.settings)
                from mlflow import MlflowClient

                self._client = self.call(lambda: MlflowClient(tracking_uri=self.settings.uri))
            return self._client

    @property
    def connected(self) -> bool:
        """Whether this process has used the store already."""
        return self._client is not None

    def call(self, function: Callable, *args, **kwargs):
        """`function(*args)`, with its failures told apart: `Unreachable`, or the store's refusal as it is."""
        from mlflow.exceptions import MlflowException

        try:
            return function(*args, **kwargs)
        except MlflowException as error:
            if error.error_code in _FINAL:
                raise
            raise Unreachable(str(error)) from error
        except FileNotFoundError as error:
            raise Unsendable(f"a file that is gone: {error}") from error
        except OSError as error:
            raise Unreachable(str(error)) from error

    def experiment_id(self, name: str) -> str:
        """The id of the experiment, created where there is none and restored where it was deleted."""
        if name not in self._experiments:
            from mlflow.exceptions import MlflowException

            found = self.call(self.client.get_experiment_by_name, name)
            if found is None:
                try:
                    self._experiments[name] = self.call(self.client.create_experiment, name,
                                                        self.settings.artifact_root)
                    return self._experiments[name]
                except MlflowException:  # another process was first
                    found = self.call(self.client.get_experiment_by_name, name)
            if found.lifecycle_stage == "deleted":
                self.call(self.client.restore_experiment, found.experiment_id)
            self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def find(self, folder: Path, key: str, experiment: str | None = None) -> tuple[str, str] | None:
        """(run id, experiment id) of a run by its key; None while it has not been created."""
        if key not in self._runs:
            record = folder.parent / key / _RUN_FILE
            if record.exists():
                known = json.loads(record.read_text())
                self._runs[key] = known["run_id"], known["experiment_id"]
                return self._runs[key]
            experiment_id = self.experiment_id(experiment or self.settings.experiment)
            runs = self.call(self.client.search_runs, [experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            if not runs:
                return None
            self._remember(folder.parent / key, key, runs[0].info)
        return self._runs[key]

    def _remember(self, folder: Path, key: str, info) -> None:
        self._runs[key] = info.run_id, info.experiment_id
        if folder.exists():
            (folder / _RUN_FILE).write_text(json.dumps({"run_id": info.run_id,
                                                        "experiment_id": info.experiment_id}))

    def deliver(self, key: str, folder: Path, events: Iterable[tuple[dict, int]],
                commit: Callable[[int], None]) -> None:
        """Send a journal's events in order, committing the position behind each one that is done with.

        Events that the store refuses for good are logged and left out, so that one bad name costs only itself.
        """
        group: list[tuple[dict, int]] = []
        for event, position in events:
            if group and (event["kind"] != group[0][0]["kind"] or event["kind"] not in _MERGED
                          or len(group) >= BATCH):
                self._deliver_group(key, folder, group, commit)
                group = []
            group.append((event, position))
        if group:
            self._deliver_group(key, folder, group, commit)

    def _deliver_group(self, key: str, folder: Path, group: list[tuple[dict, int]],
                       commit: Callable[[int], None]) -> None:
        self.client  # noqa: B018  (imports mlflow under its lock, before anything else of it is imported)
        from mlflow.exceptions import MlflowException

        try:
            for request in _requests([event for event, _ in group]):
                try:
                    self.call(self._send, key, folder, request)
                except MlflowException as error:
                    singles = list(_split(request))
                    if len(singles) < 2:
                        log.warning("tracking refused a %s: %s", request["kind"], error)
                        continue
                    for single in singles:
                        try:
                            self.call(self._send, key, folder, single)
                        except MlflowException as refusal:
                            log.warning("tracking refused %s: %s", single["values"], refusal)
        except (Unreachable, MemoryError):
            raise
        except Unsendable as error:
            log.warning("tracking leaves out: %s", error)
        except Exception as error:
            # Not a failure that is known here: it may pass (an interpreter that is shutting down), or never.
            self._failures[key] += 1
            if self._failures[key] < _ATTEMPTS:
                raise Unreachable(f"{type(error).__name__}: {error}") from error
            log.exception("tracking leaves out a %s", group[0][0]["kind"])
        self._failures[key] = 0
        commit(group[-1][1])

    def _send(self, key: str, folder: Path, event: dict) -> None:
        from mlflow.entities import Metric, Param, RunTag

        if event["kind"] == "create":
            if self.find(folder, key, event["experiment"]) is None:
                self._create(key, folder, event)
            return
        found = self.find(folder, key)
        if found is None:
            raise NotCreated(f"run {key} has not been created yet")
        run_id, values = found[0], event.get("values")
        match event["kind"]:
            case "metrics":
                self.client.log_batch(run_id, metrics=[
                    Metric(name, float("nan") if value is None else value, time, step)
                    for name, value, step, time in values], synchronous=True)
            case "params":
                self.client.log_batch(run_id, params=[Param(*pair) for pair in values.items()], synchronous=True)
            case "tags":
                self.client.log_batch(run_id, tags=[RunTag(*pair) for pair in values.items()], synchronous=True)
            case "image":
                self._send_image(run_id, event)
            case "file":
                path = Path(event["path"])
                folder_in_run = event["folder"]
                if path.is_dir():
                    self.client.log_artifacts(run_id, str(path), "/".join(filter(None, (folder_in_run, path.name))))
                else:
                    self.client.log_artifact(run_id, str(path), folder_in_run)
                shutil.rmtree(path.parent, ignore_errors=True)
            case "dataset":
                self._send_dataset(run_id, event)
            case "model":
                from infra.tracking.registry import send_model

                send_model(self, run_id, found[1], event)
            case "finish":
                self.client.set_terminated(run_id, event["status"], event["time"])

    def _create(self, key: str, folder: Path, event: dict) -> None:
        tags = dict(event["tags"], **{KEY_TAG: key})
        if event["parent"]:
            parent = self.find(folder, event["parent"], event["experiment"])
            if parent is None and any((folder.parent / event["parent"]).glob("*.jsonl")):
                raise NotCreated(f"the parent run {event['parent']} has not been created yet")
            if parent is not None:  # else its journal was lost: better a run of its own than none
                tags["mlflow.parentRunId"] = parent[0]
        run = self.client.create_run(self.experiment_id(event["experiment"]), event["time"], tags, event["name"])
        self._remember(folder, key, run.info)

    def _send_image(self, run_id: str, event: dict) -> None:
        from PIL import Image

        path = Path(event["path"])
        with Image.open(path) as image:
            self.client.log_image(run_id, image.copy(), key=event["key"], step=event["step"],
                                  timestamp=event["time"], synchronous=True)
        shutil.rmtree(path.parent, ignore_errors=True)

    def _send_dataset(self, run_id: str, event: dict) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        protocol = event["uri"].split("://", 1)[0] if "://" in event["uri"] else "local"
        dataset = Dataset(name=event["name"], digest=event["digest"], source_type=protocol,
                          source=json.dumps({"uri": event["uri"]}))
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", event["context"])])])


def _requests(events: list[dict]) -> Iterable[dict]:
    """Events of one kind merged into as few requests as MLflow's limits allow."""
    kind = events[0]["kind"]
    if kind not in _MERGED:
        yield from events
    elif kind == "metrics":
        values = [value for event in events for value in event["values"]]
        for start in range(0, len(values), BATCH):
            yield {"kind": kind, "values": values[start:start + BATCH]}
    else:
        pairs = list({name: value for event in events for name, value in event["values"].items()}.items())
        for start in range(0, len(pairs), _PARAM_BATCH):
            yield {"kind": kind, "values": dict(pairs[start:start + _PARAM_BATCH])}


def _split(request: dict) -> Iterable[dict]:
    """One request for each value of a merged one."""
    values = request.get("values", ())
    for value in values.items() if isinstance(values, dict) else values:
        yield {"kind": request["kind"], "values": dict([value]) if isinstance(values, dict) else [value]}
