"""Delivery: events of a journal into MLflow. In: events in order. Out: MLflow calls, batched; errors told apart.

Event kinds (all times in ms since the epoch): `create` {name, experiment, parent, tags, time}, `metrics` {values:
[[key, value or null for NaN, step, time]]}, `params` {values}, `tags` {values}, `image` {path, key, step, time},
`file` {path, folder}, `dataset` {name, uri, digest, context}, `model` (see `registration`), `finish` {status, time}.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from omniloom.infra.secrets import logger
from omniloom.infra.tracking.config import EXPERIMENT_TAGS, TrackingSettings
from omniloom.infra.tracking.connection import open_client
from omniloom.infra.tracking.failures import (
    NotCreated,
    Refused,
    TryAgain,
    Unreachable,
    is_no_place,
    say_once,
    short,
    told_apart,
)
from omniloom.infra.tracking.journal import SUFFIX, replace_text
from omniloom.infra.tracking.leftovers import leave_out
from omniloom.infra.tracking.registration import send_model

log = logger(__name__)

KEY_TAG = "omniloom.run_key"
BATCH = 1000  # MLflow's limit of metrics in a request
_PARAM_BATCH = 100  # MLflow's limit of params, and of tags, in a request
_ATTEMPTS = 3  # at an event that a store which answers does not take
_MERGED = ("metrics", "params", "tags")
_APART = ("image", "file", "dataset", "model")  # may go to a store of their own, and nothing behind them needs them
RUN_FILE = "run.json"
_NAME_CHARACTERS = 250  # of a run, in MLflow's databases


class Sink:
    """A connection to one tracking store. Methods raise `Unreachable` where the store does not answer, `Refused`
    where it does not take the request."""

    def __init__(self, settings: TrackingSettings):
        self.settings = settings
        self._client = None
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, tuple[str, str]] = {}  # run key -> (run id, experiment id)
        self._failures: Counter[str] = Counter()
        self._files_refused = False  # the last file could not be stored: the next is not tried as often
        self.registered: dict[tuple[str, str], Any] = {}  # (model name, fingerprint) -> RegisteredModel
        self.not_registered: dict[tuple[str, str], str] = {}  # ... -> why

    @property
    def client(self):
        """The `MlflowClient`; made on first use, which may create and migrate a database (seconds)."""
        if self._client is None:
            self._client = open_client(self.settings)
        return self._client

    @property
    def connected(self) -> bool:
        """Whether this process has used the store already."""
        return self._client is not None

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """A method of the client, its failures told apart."""
        return told_apart(getattr(self.client, function), *args, **kwargs)

    def experiment_id(self, name: str) -> str:
        """The id of the experiment, created where there is none and restored where it was deleted."""
        if name not in self._experiments:
            found = self.call("get_experiment_by_name", name)
            if found is None:
                try:
                    created = _require_id(
                        self.call("create_experiment", name, self.settings.artifact_root, EXPERIMENT_TAGS)
                    )
                    self._experiments[name] = created
                    return created
                except Refused as error:  # another process was first
                    found = self.call("get_experiment_by_name", name)
                    if found is None:
                        raise Refused(f"experiment {name}: {error}") from error
            _require_id(found.experiment_id)
            if found.lifecycle_stage == "deleted":
                self.call("restore_experiment", found.experiment_id)
            for tag, value in EXPERIMENT_TAGS.items() - found.tags.items():
                self.call("set_experiment_tag", found.experiment_id, tag, value)
            self._experiments[name] = found.experiment_id
        return self._experiments[name]

    def find(self, folder: Path, key: str, experiment: str | None = None) -> tuple[str, str] | None:
        """(run id, experiment id) of a run by its key; None while it has not been created."""
        if key not in self._runs:
            if known := _recorded(folder.parent / key / RUN_FILE):
                self._runs[key] = known
                return known
            experiment_id = self.experiment_id(experiment or self.settings.experiment)
            runs = self.call("search_runs", [experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
            if not runs:
                return None
            self._remember(folder.parent / key, key, runs[0].info)
        return self._runs[key]

    def known(self, folder: Path, key: str) -> tuple[str, str] | None:
        """The same, without asking the store."""
        return self._runs.get(key) or _recorded(folder / RUN_FILE)

    def _remember(self, folder: Path, key: str, info) -> None:
        self._runs[key] = info.run_id, info.experiment_id
        try:
            if folder.exists():
                replace_text(
                    folder / RUN_FILE, json.dumps({"run_id": info.run_id, "experiment_id": info.experiment_id})
                )
        except OSError as error:  # other processes ask the store
            log.debug("no note of the run's id: %s", error)

    def deliver(
        self, key: str, folder: Path, events: Iterable[tuple[dict, int]], commit: Callable[[int], None]
    ) -> None:
        """Send a journal's events in order, committing the position behind each one that is done with.

        Events that the store refuses for good are kept apart and told, so that one bad name costs only itself.
        """
        group: list[tuple[dict, int]] = []
        for event, position in events:
            if group and (event["kind"] != group[0][0]["kind"] or event["kind"] not in _MERGED or len(group) >= BATCH):
                self._deliver_group(key, folder, group, commit)
                group = []
            group.append((event, position))
        if group:
            self._deliver_group(key, folder, group, commit)

    def _deliver_group(
        self, key: str, folder: Path, group: list[tuple[dict, int]], commit: Callable[[int], None]
    ) -> None:
        events = [event for event, _ in group]
        kind = events[0]["kind"]
        try:
            for request in _requests(events):
                self._deliver_request(key, folder, request)
            self._files_refused = self._files_refused and kind not in _APART
        except Refused as error:
            if kind == "create":  # what belongs to the run waits with it
                raise self._no_run(folder, error) from error
            self._leave_out(folder, events, error)
        except (NotCreated, MemoryError):
            raise
        except Unreachable as error:
            if kind not in _APART:
                raise
            self._try_again(key, folder, events, error)
        except Exception as error:
            self._try_again(key, folder, events, error)
        self._failures[key] = 0
        commit(group[-1][1])

    def _deliver_request(self, key: str, folder: Path, request: dict) -> None:
        """One request; where it is refused, each of its values by itself."""
        try:
            told_apart(self._send, key, folder, request)
        except Refused as error:
            singles = list(_split(request))
            if len(singles) < 2:
                raise
            refused = 0
            for single in singles:
                try:
                    told_apart(self._send, key, folder, single)
                except Refused as refusal:
                    refused += 1
                    self._leave_out(folder, [single], refusal)
            log.debug("%d of %d values refused: %s", refused, len(singles), error)

    def _try_again(self, key: str, folder: Path, events: list[dict], error: Exception) -> None:
        """Leave events out that a store which answers has not taken in several attempts; else raise Unreachable."""
        if not self._answers():
            raise Unreachable(short(error)) from error
        self._failures[key] += 1
        kind = events[0]["kind"]
        log.debug("attempt %d at a %s: %s", self._failures[key], kind, short(error))
        at_once = kind in _APART and (self._files_refused or is_no_place(error))
        if self._failures[key] < _ATTEMPTS and not at_once:
            raise TryAgain(f"{type(error).__name__}: {short(error)}") from error
        if kind == "create":
            raise self._no_run(folder, error) from error
        self._files_refused = self._files_refused or kind in _APART
        self._leave_out(folder, events, error)

    def _answers(self) -> bool:
        """Whether it answers as a tracking store does; Unreachable where it is away."""
        try:
            self.call("search_experiments", max_results=1)
        except Unreachable:
            raise
        except Exception as error:
            log.debug("the store answers with %s", error)
            return False
        return True

    def _no_run(self, folder: Path, error: Exception) -> NotCreated:
        say_once(
            self.settings.uri,
            "tracking at %s does not take a run; it waits in %s: %s",
            self.settings.shown,
            folder,
            short(error),
        )
        return NotCreated(short(error))

    def _leave_out(self, folder: Path, events: list[dict], error: Exception) -> None:
        for event in events:
            if event["kind"] == "model":
                self.not_registered[event["name"], event["fingerprint"]] = short(error)
            leave_out(folder, event, short(error))

    def _send(self, key: str, folder: Path, event: dict) -> None:
        from mlflow.entities import Metric, Param, RunTag

        if event["kind"] == "create":
            if self.find(folder, key, event["experiment"]) is None:
                self._create(key, folder, event)
            return
        found = self.find(folder, key)
        if found is None:
            raise NotCreated(f"run {key} has not been created yet")
        run_id = found[0]
        match event["kind"]:
            case "metrics":
                self.client.log_batch(
                    run_id,
                    metrics=[
                        Metric(name, float("nan") if value is None else value, time, step)
                        for name, value, step, time in event["values"]
                    ],
                    synchronous=True,
                )
            case "params":
                params = [Param(*pair) for pair in event["values"].items()]
                self.client.log_batch(run_id, params=params, synchronous=True)
            case "tags":
                tags = [RunTag(*pair) for pair in event["values"].items()]
                self.client.log_batch(run_id, tags=tags, synchronous=True)
            case "image":
                self._send_image(run_id, folder / event["path"], event)
            case "file":
                path = folder / event["path"]
                folder_in_run = event["folder"]
                if not path.exists():
                    log.debug("%s was stored before", path)
                    return
                if path.is_dir():
                    self.client.log_artifacts(run_id, str(path), "/".join(filter(None, (folder_in_run, path.name))))
                else:
                    self.client.log_artifact(run_id, str(path), folder_in_run)
                shutil.rmtree(path.parent, ignore_errors=True)
            case "dataset":
                self._send_dataset(run_id, event)
            case "model":
                send_model(self, run_id, found[1], event)
            case "finish":
                self.client.set_terminated(run_id, event["status"], event["time"])

    def _create(self, key: str, folder: Path, event: dict) -> None:
        tags = dict(event["tags"], **{KEY_TAG: key})
        if event["parent"]:
            parent = self.find(folder, event["parent"], event["experiment"])
            if parent is None and any((folder.parent / event["parent"]).glob(f"*{SUFFIX}")):
                raise NotCreated(f"the parent run {event['parent']} has not been created yet")
            if parent is not None:  # else its journal was lost: better a run of its own than none
                tags["mlflow.parentRunId"] = parent[0]
        run = self.client.create_run(
            self.experiment_id(event["experiment"]), event["time"], tags, event["name"][:_NAME_CHARACTERS]
        )
        _require_id(run.info.run_id)
        self._remember(folder, key, run.info)

    def _send_image(self, run_id: str, path: Path, event: dict) -> None:
        from PIL import Image, UnidentifiedImageError

        if not path.exists():
            log.debug("%s was stored before", path)
            return
        try:
            with Image.open(path) as image:
                picture = image.copy()
        except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, OSError) as error:
            raise Refused(f"{path.name} is not readable as a picture: {error}") from error
        self.client.log_image(
            run_id, picture, key=event["key"], step=event["step"], timestamp=event["time"], synchronous=True
        )
        shutil.rmtree(path.parent, ignore_errors=True)

    def _send_dataset(self, run_id: str, event: dict) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        protocol = event["uri"].split("://", 1)[0] if "://" in event["uri"] else "local"
        dataset = Dataset(
            name=event["name"], digest=event["digest"], source_type=protocol, source=json.dumps({"uri": event["uri"]})
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", event["context"])])])


def _requests(events: list[dict]) -> Iterable[dict]:
    """Events of one kind merged into as few requests as MLflow's limits allow."""
    kind = events[0]["kind"]
    if kind not in _MERGED:
        yield from events
    elif kind == "metrics":
        values = [value for event in events for value in event["values"]]
        for start in range(0, len(values), BATCH):
            yield {"kind": kind, "values": values[start : start + BATCH]}
    else:
        pairs = list({name: value for event in events for name, value in event["values"].items()}.items())
        for start in range(0, len(pairs), _PARAM_BATCH):
            yield {"kind": kind, "values": dict(pairs[start : start + _PARAM_BATCH])}


def _split(request: dict) -> Iterable[dict]:
    """One request for each value of a merged one."""
    values = request.get("values", ())
    for value in values.items() if isinstance(values, dict) else values:
        yield {"kind": request["kind"], "values": dict([value]) if isinstance(values, dict) else [value]}


def _require_id(value: Any) -> str:
    if not value or not isinstance(value, str):
        raise Unreachable("what answers there is no tracking store: it gives no ids")
    return value


def _recorded(path: Path) -> tuple[str, str] | None:
    """The ids that `run.json` holds; None where there is none or it was cut: the store is asked then."""
    try:
        known = json.loads(path.read_text())
        run_id, experiment_id = known["run_id"], known["experiment_id"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return (run_id, experiment_id) if isinstance(run_id, str) and isinstance(experiment_id, str) and run_id else None
