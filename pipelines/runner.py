"""Runner: executes a plan on Ray and publishes what the stages make.

Stages whose inputs are there run side by side, each as one Ray task; the driver only waits, shows progress, and
publishes. Whatever dies, the work folders in storage are what the next run goes on from.
"""
from __future__ import annotations

import contextlib
import platform
import subprocess
import tempfile
import time
import uuid
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from infra import cluster, storage
from infra.artifacts import Artifact
from infra.errors import InputError, OmniLoomError
from infra.figures import finite
from infra.lease import Lease
from infra.progress import Progress, ProgressBoard
from infra.secrets import redact
from infra.tracking import Tracker, TrackingSettings, close_stale, replay, resolve_tracking
from pipelines.display import Display
from pipelines.fingerprint import canonical
from pipelines.plan import Plan, PlannedStage
from stages.base import StageContext

_PACKAGES = ("omniloom", "torch", "ray", "deepspeed", "mlflow", "pyarrow", "av", "pillow", "tokenizers")


class StageFailed(OmniLoomError):
    """A stage's body raised; `__cause__` is what it raised."""


def run(plan: Plan, display: Display) -> None:
    """Bring the plan's selection up to date. Raises InputError (nothing was started) or StageFailed."""
    if plan.blocked:
        first = plan.blocked[0]
        raise InputError(f"{first.name} is blocked: {first.reason}")
    if not plan.to_execute:
        for planned in plan.stages:
            if planned.artifact and planned.name not in plan.config.pins:
                plan.store.set_last_used(plan.config.name, planned.artifact)
        return
    settings = resolve_tracking(plan.config.tracking, plan.config.storage)  # InputError before anything is started
    with display:
        display.note("starting Ray")
        connected = cluster.connect_to(plan.config.cluster)
        try:
            _check_room(plan, connected)
            _Run(plan, display, connected, settings).execute()
        finally:
            if connected.opened:  # a Ray that the caller had before this run is the caller's to end
                cluster.shutdown()


def _check_room(plan: Plan, connected: cluster.Cluster) -> None:
    for planned in plan.to_execute:
        needs = planned.stage.needs(planned.config)
        for kind, wanted, present in (("CPUs", needs.cpus + needs.worker_cpus, connected.num_cpus),
                                      ("GPUs", needs.gpus + needs.worker_gpus, connected.num_gpus)):
            if wanted > present:
                raise InputError(f"needs {wanted:g} {kind}, the cluster has {present:g}",
                                 field=f"stages.{planned.name}.workers")


class _Run:
    """One execution: a parent MLflow run, a child per executed stage, and a record in storage."""

    def __init__(self, plan: Plan, display: Display, connected: cluster.Cluster, settings: TrackingSettings):
        import ray

        self.plan, self.display, self.store, self.cluster = plan, display, plan.store, connected
        self.settings = settings
        self.board = ray.remote(ProgressBoard).options(num_cpus=0).remote()
        self.id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        self.record: dict[str, Any] = {"id": self.id, "pipeline": plan.config.name, "status": "running",
                                       "started": _now(), "stages": {}}

    def execute(self) -> None:
        replay(self.settings)  # neither raises, whatever tracking answers
        close_stale(self.settings, self.plan.config.name)
        self.parent = Tracker(self.settings).start_pipeline(
            self.plan.config.name, self.plan.config.model_dump(mode="json"), {"omniloom.run": self.id})
        status = "FAILED"
        try:
            self._schedule()
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.record |= {"status": status.lower(), "ended": _now()}
            self._write_record()
            self.parent.finish(status)

    def _schedule(self) -> None:
        self._write_record()
        running: dict[Future, PlannedStage] = {}
        pool = ThreadPoolExecutor(len(self.plan.stages), thread_name_prefix="stage")
        failure: BaseException | None = None
        try:
            while True:
                if failure is None:
                    for planned in self._ready(running):
                        self.display.start(planned.name, planned.reason)
                        running[pool.submit(self._make, planned)] = planned
                if not running:
                    break
                finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                self._show_progress()
                for future in finished:
                    planned = running.pop(future)
                    try:
                        artifact = future.result()
                    except Exception as error:
                        self.record["stages"][planned.name] = {"status": "failed", "error": str(error)}
                        self.display.fail(planned.name)
                        failure = failure or error
                        continue
                    self.plan.completed(planned.name, artifact)
                    self.record["stages"][planned.name] = {"status": "finished", "fingerprint": artifact.fingerprint}
                    self.display.finish(planned.name, artifact.manifest["times"]["seconds"], artifact.metrics,
                                        planned.stage.summary(artifact.metrics))
                    self._write_record()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure:
            raise failure
        for planned in self.plan.stages:
            if planned.artifact and planned.name not in self.plan.done and planned.name not in self.plan.config.pins:
                self.store.set_last_used(self.plan.config.name, planned.artifact)

    def _ready(self, running: dict[Future, PlannedStage]) -> list[PlannedStage]:
        """Stages that can start: all that they depend on, however far up, is settled."""
        busy = {planned.name for planned in running.values()}
        pending = {planned.name for planned in self.plan.to_execute}
        return [planned for planned in self.plan.to_execute
                if planned.name not in busy and not pending & self.plan.graph.ancestors(planned.name)]

    def _show_progress(self) -> None:
        import ray

        with contextlib.suppress(Exception):  # a busy board must not end a run
            self.display.update(ray.get(self.board.read.remote(), timeout=2))

    def _make(self, planned: PlannedStage) -> Artifact:
        """Make one artifact; or take one that was published since the plan was made, unless the stage is forced."""
        lease_uri = storage.join(self.store.root, "leases", planned.name, f"{planned.fingerprint}.json")
        with Lease(lease_uri, on_wait=lambda held: self.display.note(
                f"{planned.name}: another run ({(held or {}).get('owner', 'unknown')}) makes it; waiting")):
            work = self.store.work_uri(planned.name, planned.fingerprint)
            current = (self.store.finish_publishing(planned.name, planned.fingerprint, work)
                       or self.store.find(planned.name, planned.fingerprint))
            seen = planned.artifact and planned.artifact.manifest
            if current and current.manifest != seen and planned.name not in self.plan.selection.force:
                return self._adopt(planned, current)
            if planned.status == "run":
                storage.remove(work)
            return self._adopt(planned, self._execute(planned, work))

    def _adopt(self, planned: PlannedStage, artifact: Artifact) -> Artifact:
        self.store.set_last_used(self.plan.config.name, artifact)
        return artifact

    def _execute(self, planned: PlannedStage, work: str) -> Artifact:
        import ray

        inputs = {name: self.plan[name].artifact for name in planned.stage.inputs}
        tracker = self.parent.child(planned.name, {"omniloom.fingerprint": planned.fingerprint,
                                                   "omniloom.reason": planned.reason},
                                    canonical(planned.config, planned.name))
        for name, artifact in inputs.items():
            tracker.log_input(name, artifact.uri, artifact.fingerprint)
            upstream = artifact.manifest.get("mlflow_run_id")
            if upstream:
                tracker.set_tags({f"omniloom.upstream.{name}": upstream})
        place, reachable_inputs = work, inputs
        if storage.is_process_local(work):
            # Workers are other processes: they get a folder of this machine, and the driver carries the files.
            scratch = Path(tempfile.mkdtemp(prefix="omniloom-"))
            place = str(scratch / "work")
            storage.copy_tree(work, place)
            reachable_inputs = {name: Artifact(a.stage, a.fingerprint, str(a.local()), a.manifest)
                                for name, a in inputs.items()}
        context = StageContext(planned.name, planned.fingerprint, planned.config, reachable_inputs, place,
                               Progress(planned.name, self.board), tracker)
        needs = planned.stage.needs(planned.config)
        began = time.time()
        status = "FAILED"
        try:
            # A body that asks for more CPUs than any node has would wait for ever; on fewer it only takes longer.
            cpus = min(needs.cpus, self.cluster.node_cpus)
            task = ray.remote(run_stage).options(num_cpus=cpus, num_gpus=needs.gpus, max_retries=0,
                                                 name=planned.name)
            metrics = finite(ray.get(task.remote(planned.stage, context)))
            if place != work:
                storage.copy_tree(place, work)
                storage.remove(str(scratch))
            facts = self._facts(planned, inputs, metrics, began, tracker)
            artifact = self.store.publish(planned.name, planned.fingerprint, work, facts)
            tracker.log_output(planned.name, artifact.uri, planned.fingerprint)
            numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
            # A training stage's figures belong to its last step, where its curves end.
            tracker.log_metrics(numbers, step=metrics.get("steps", 0))
            if planned.name == "evaluate":  # the run as a whole is judged by them: its row in the UI shows them
                self.parent.log_metrics(numbers)
            status = "FINISHED"
            return artifact
        except ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
            tracker.log_text(str(error), "error.txt")
            if isinstance(cause, InputError):
                raise cause from error
            raise StageFailed(f"stage {planned.name} failed: {_last_line(cause)}") from error
        finally:
            tracker.finish(status)

    def _facts(self, planned: PlannedStage, inputs: dict[str, Artifact], metrics: dict, began: float,
               tracker: Any) -> dict:
        ended = time.time()
        return {
            "stage": planned.name, "version": planned.stage.module.VERSION, "fingerprint": planned.fingerprint,
            "config": canonical(planned.config, planned.name),
            "inputs": {name: artifact.fingerprint for name, artifact in inputs.items()},
            "input_digests": {name: artifact.digest for name, artifact in inputs.items()},
            "sources": planned.sources, "metrics": metrics, "code": code_revision(),
            "packages": package_versions(), "pipeline": self.plan.config.name, "run": self.id,
            "times": {"started": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
                      "ended": datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds"),
                      "ended_unix": ended, "seconds": round(ended - began, 2)},
            "mlflow_run_id": tracker.run_id(2.0),
        }

    def _write_record(self) -> None:
        storage.write_json(storage.join(self.store.root, "runs", f"{self.id}.json"), redact(self.record))


def run_stage(stage, context: StageContext) -> dict:
    """The body of the Ray task: the stage's plain function, and the end of this process's tracking."""
    try:
        return stage.module.run(context)
    finally:
        context.tracker.close()


def code_revision() -> str | None:
    """The commit of the checkout that runs, with `+changes` where it is not clean; None outside a checkout.

    A tree that was shipped with a job has it in the file REVISION.
    """
    root = Path(__file__).parents[1]
    if (shipped := root / "REVISION").exists():
        return shipped.read_text().strip() or None
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True,
                              timeout=10).stdout.strip()
    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__
