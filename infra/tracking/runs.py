"""Runs: what a pipeline and its stages log through. In: values, images, files, dataset names. Out: journal events.

`Tracker.start_pipeline` gives the parent run's `RunHandle`, `RunHandle.child` a stage's. A handle is picklable and may
be used in any process, such as a Ray worker. No method raises because of MLflow, the network or the disk.
"""

from __future__ import annotations

import functools
import json
import math
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omniloom.infra import owner
from omniloom.infra.figures import finite
from omniloom.infra.secrets import logger, redact, without_user_info
from omniloom.infra.tracking import charts, values
from omniloom.infra.tracking.config import TrackingSettings
from omniloom.infra.tracking.courier import courier
from omniloom.infra.tracking.failures import say_once, short
from omniloom.infra.tracking.pages import artifact_page, page
from omniloom.infra.tracking.sink import KEY_TAG, Sink
from omniloom.infra.tracking.system import SystemSampler

log = logger(__name__)

PIPELINE_TAG = "omniloom.pipeline"
STAGE_TAG = "omniloom.stage"
OWNER_TAG = "omniloom.owner"
HEARTBEAT_TAG = "omniloom.heartbeat"
HEARTBEAT_SECONDS = 60.0
STALE_SECONDS = 600.0  # without a heartbeat for so long, a run of another machine counts as dead
PARAM_CHARACTERS = 6000  # MLflow's limit
_TAG_CHARACTERS = 8000  # MLflow's limit
_DIGEST_CHARACTERS = 32  # MLflow takes at most 36 in a dataset's digest
STATUSES = ("FINISHED", "FAILED", "KILLED")

_samplers: dict[str, SystemSampler] = {}  # this process's samplers by run key


def _now() -> int:
    return round(time.time() * 1000)


def _quiet(method: Callable) -> Callable:
    """A method that never raises: what went wrong is told once for the run and the method, and None returned."""

    @functools.wraps(method)
    def call(self: RunHandle, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            say_once(
                f"{self.key} {method.__name__}",
                "tracking: %s of %s: %s: %s",
                method.__name__,
                self.name,
                type(error).__name__,
                short(error),
            )
            return None

    return call


@dataclass(frozen=True)
class RunHandle:
    """A run to log to, from any process.

    `key` names the run before MLflow has given it an id; it is also the tag `omniloom.run_key`.
    """

    settings: TrackingSettings
    key: str
    name: str
    pipeline: str
    tags: dict[str, str] = field(default_factory=dict)

    # --- what a stage logs
    @_quiet
    def log_metrics(self, metrics: Mapping[str, Any], step: int = 0, seen: int | None = None) -> None:
        """Metrics at a step: numbers, or arrays of one element.

        With `seen` (tokens or pictures seen so far) the curves of a training are also logged as `versus_seen/NAME`,
        whose step is that count, and `throughput/seen` against the step. An infinite value is stored as NaN, and every
        value that is not finite also counts as `nonfinite/NAME` = 1.
        """
        now, points, at = _now(), [], values.step(step)
        count = None if seen is None else values.step(seen)
        number: float | None
        for key, value in metrics.items():
            try:
                number = values.number(value)
            except (TypeError, ValueError) as error:
                say_once(f"{self.key} {key}", "metric %s is not a number: %s", values.name(key), short(error))
                continue
            key = values.name(key)
            if not math.isfinite(number):
                points.append([f"nonfinite/{key}", 1.0, at, now])
                number = None
            points.append([key, number, at, now])
            if count is not None and (versus := charts.versus_seen(key)):
                points.append([versus, number, count, now])
        if count is not None:
            points.append([charts.SEEN, float(count), at, now])
        self._append("metrics", values=points)

    @_quiet
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters, once each: nested mappings become dotted names; past 6,000 characters a value is cut, and says
        so at its end. Secrets are left out."""
        self._append(
            "params",
            values={
                values.name(key): values.cut(value, PARAM_CHARACTERS) for key, value in values.flat(redact(params))
            },
        )

    @_quiet
    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._append("tags", values=_tags(tags))

    @_quiet
    def log_image(self, image: Any, key: str, step: int = 0) -> None:
        """An image that the UI shows by step, under `pictures/` where `key` names no section: PNG bytes, a PIL image,
        or an array, (H, W), (H, W, 3) or (H, W, 4), uint8 or what `values.picture` makes uint8 of."""
        self._append(
            "image",
            data=(values.picture(image), "image.png"),
            key=charts.pictured(values.name(key)),
            step=values.step(step),
            time=_now(),
        )

    @_quiet
    def log_file(self, local_path: str | Path, artifact_path: str | None = None) -> None:
        """A file, or a folder with its name, into the run's folder `artifact_path`. It is copied at once."""
        self._append("file", source=Path(local_path), folder=values.inside(artifact_path or "") or None)

    @_quiet
    def log_text(self, text: str, artifact_file: str) -> None:
        """Text as a file of the run, such as `report.html`, without secrets."""
        folder, _, name = values.inside(artifact_file).rpartition("/")
        self._append("file", data=(values.text(text).encode(), name), folder=folder or None)

    @_quiet
    def log_input(self, name: str, uri: str, digest: str, context: str = "input") -> None:
        """An artifact that the run reads, shown as a dataset. `digest` is its fingerprint (32 characters are kept)."""
        self._append(
            "dataset",
            name=values.text(name),
            uri=values.text(uri),
            digest=values.text(digest)[:_DIGEST_CHARACTERS],
            context=context,
        )

    def log_output(self, name: str, uri: str, digest: str, context: str = "output") -> None:
        """An artifact that the run made, shown as a dataset with the context `output`."""
        self.log_input(name, uri, digest, context)

    @_quiet
    def log_model(
        self,
        bundle: str,
        code: str,
        name: str,
        fingerprint: str,
        alias: str | None,
        metrics: Mapping[str, Any],
        example: list[dict[str, Any]] | None,
        no_worse: Mapping[str, str],
        better_than: str | None = None,
        dataset: tuple[str, str] | None = None,
        trained_by: str | None = None,
        description: str | None = None,
    ) -> None:
        """A model for the registry: see `registry.register_model`."""
        self._append(
            "model",
            bundle=bundle,
            code=code,
            name=name,
            fingerprint=fingerprint,
            alias=alias,
            metrics=finite(metrics),
            example=finite(example),
            no_worse=dict(no_worse),
            better_than=better_than,
            dataset=dataset and [values.text(dataset[0]), values.text(dataset[1])[:_DIGEST_CHARACTERS]],
            trained_by=trained_by,
            description=description and values.text(description),
        )

    # --- its life
    def child(
        self, stage: str, tags: Mapping[str, Any] | None = None, params: Mapping[str, Any] | None = None
    ) -> RunHandle:
        """Start a stage's run below this one, with its system metrics sampled in this process."""
        run = _start(self.settings, stage, self.pipeline, self.key, {STAGE_TAG: stage, **(tags or {})})
        if params:
            run.log_params(params)
        if self.settings.system_metrics:
            run.sample_system()
        return run

    @_quiet
    def sample_system(self, node: str | None = None) -> None:
        """Sample this machine's CPU, memory, disk, network and GPUs until `finish` or `close` in this process.

        `node` tells machines apart (`system/NODE/...`): a worker elsewhere passes its own name.
        """
        if self.key not in _samplers:
            _samplers[self.key] = SystemSampler(self.log_metrics, self.settings.sample_seconds, node)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all that this process logged has arrived; False where it has not within `timeout` seconds."""
        return courier(self.settings).flush(self.settings.flush_seconds if timeout is None else timeout)

    def close(self, timeout: float | None = None) -> bool:
        """A worker's end of logging: the run itself goes on."""
        self._stop_sampling()
        courier(self.settings).retire(self.key)
        return self.flush(timeout)

    def finish(self, status: str = "FINISHED", timeout: float | None = None) -> bool:
        """End the run as FINISHED, FAILED or KILLED. True when MLflow has all of it; else it waits for `replay`."""
        if status not in STATUSES:
            raise ValueError(f"status: expected one of {', '.join(STATUSES)}, got {status!r}")
        self._stop_sampling()
        self._append("finish", status=status, time=_now())
        courier(self.settings).retire(self.key)
        return self.flush(timeout)

    @_quiet
    def run_id(self, timeout: float | None = None) -> str | None:
        """MLflow's id of the run; None where tracking does not answer in `timeout` seconds."""
        found = self._find(timeout)
        return found[0] if found else None

    @_quiet
    def url(self, timeout: float | None = None) -> str | None:
        """The run's page below the UI's address, in full where tracking is a server."""
        found = self._find(timeout)
        base = without_user_info(self.settings.uri).rstrip("/") if self.settings.uri.startswith("http") else ""
        return page(base, found[1], found[0]) if found else None

    @_quiet
    def artifact_link(self, run_id: str, file: str, timeout: float | None = None) -> str | None:
        """Where another run's file is shown, as a link for this run's description."""
        found = self._find(timeout)
        return artifact_page(found[1], run_id, file) if found else None

    def _find(self, timeout: float | None) -> tuple[str, str] | None:
        return courier(self.settings).locate(self.key, self.settings.flush_seconds if timeout is None else timeout)

    @_quiet
    def _stop_sampling(self) -> None:
        if (sampler := _samplers.pop(self.key, None)) is not None:
            sampler.stop()

    @_quiet
    def _append(
        self, kind: str, data: tuple[bytes, str] | None = None, source: Path | None = None, **event: Any
    ) -> None:
        journal = courier(self.settings).journal(self.key)
        if data is not None:
            event["path"] = journal.stage_bytes(*data)
        if source is not None:
            event["path"] = journal.stage_file(source)
        journal.append({"kind": kind, **event})


class Tracker:
    """Starts the runs of a pipeline."""

    def __init__(self, settings: TrackingSettings):
        self.settings = settings

    def start_pipeline(
        self,
        name: str,
        config: Mapping[str, Any],
        tags: Mapping[str, Any] | None = None,
        title: str | None = None,
        below: RunHandle | None = None,
    ) -> RunHandle:
        """The parent run of the pipeline `name`, with the whole config as parameters and as the file `config.json`;
        secrets are left out. `title` is what the run is called, by default as the pipeline; `below` is the sweep's run
        that it is a trial of."""
        run = _start(self.settings, title or name, name, below.key if below else None, tags or {})
        run.log_params(config)
        run.log_text(_indented(config), "config.json")
        return run


def _start(
    settings: TrackingSettings, name: str, pipeline: str, parent: str | None, tags: Mapping[str, Any]
) -> RunHandle:
    key = f"{_now():013d}-{uuid.uuid4().hex[:12]}"  # begins with the time, so that keys sort by it
    every = _tags({PIPELINE_TAG: pipeline, OWNER_TAG: owner.this_process(), HEARTBEAT_TAG: str(_now()), **tags})
    run = RunHandle(settings, key, values.text(name), pipeline, every)
    run._append("create", name=run.name, experiment=settings.experiment, parent=parent, tags=every, time=_now())
    courier(settings).beat(key, lambda: run.set_tags({HEARTBEAT_TAG: _now()}), HEARTBEAT_SECONDS)
    return run


def _tags(tags: Mapping[str, Any]) -> dict[str, str]:
    return {values.name(tag): values.cut(value, _TAG_CHARACTERS) for tag, value in redact(tags).items()}


def _indented(config: Any) -> str:
    try:
        return json.dumps(redact(config), indent=2, ensure_ascii=False, default=str)
    except Exception:  # keys that JSON has not
        return values.text(config)


def find_runs(settings: TrackingSettings, pipeline: str | None = None, key: str | None = None) -> list[dict]:
    """Runs of the experiment, newest first: {run_id, key, name, stage, status, tags, metrics}.

    Raises `ConnectionError` where tracking does not answer, or not with runs.
    """
    wanted = {PIPELINE_TAG: pipeline, KEY_TAG: key}
    query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in wanted.items() if value is not None)
    sink = Sink(settings)
    try:
        runs, token = [], None
        while True:
            page = sink.call(
                "search_runs", [sink.experiment_id(settings.experiment)], query, max_results=1000, page_token=token
            )
            runs += page
            if not (token := page.token):
                break
    except Exception as error:
        raise ConnectionError(f"tracking at {settings.shown} does not answer: {short(error)}") from error
    return [
        {
            "run_id": run.info.run_id,
            "key": run.data.tags.get(KEY_TAG),
            "name": run.info.run_name,
            "stage": run.data.tags.get(STAGE_TAG),
            "status": run.info.status,
            "tags": dict(run.data.tags),
            "metrics": dict(run.data.metrics),
        }
        for run in runs
    ]


def close_stale(settings: TrackingSettings, pipeline: str) -> int:
    """Mark as KILLED the pipeline's runs whose process died without ending them; returns how many.

    A run of this machine is dead when its process is; one of another machine when its heartbeat has stopped for ten
    minutes. Where tracking does not answer nothing is done. Call it after `replay`.
    """
    closed = 0
    database = settings.database
    if courier(settings).away or database and not database.exists():
        return 0
    try:
        sink = Sink(settings)
        for run in find_runs(settings, pipeline):
            if run["status"] == "RUNNING" and OWNER_TAG in run["tags"] and not _lives(run["tags"]):
                sink.call("set_terminated", run["run_id"], "KILLED")
                closed += 1
    except ConnectionError as error:  # what the run itself logs tells of it
        log.debug("no look for runs that were cut off: %s", error)
    except Exception as error:
        say_once(settings.uri, "tracking could not look for runs that were cut off: %s", short(error))
    return closed


def _lives(tags: Mapping[str, str]) -> bool:
    lives = owner.lives(tags[OWNER_TAG])
    if lives is None:
        try:
            return _now() - int(tags.get(HEARTBEAT_TAG, 0)) < 1000 * STALE_SECONDS
        except ValueError:
            return True
    return lives
