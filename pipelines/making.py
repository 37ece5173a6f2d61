"""Making one artifact of a run: the stage's lease, its MLflow run, its body, and what its manifest says.

In: a planned stage whose inputs are there. Out: the artifact, published; or one that another run has published
meanwhile. Several are made side by side, each in a thread.
"""

from __future__ import annotations

import contextlib
import platform
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.infra.errors import InputError
from omniloom.infra.figures import finite
from omniloom.infra.lease import Holder, Lease
from omniloom.infra.owner import shown
from omniloom.infra.progress import Progress
from omniloom.infra.tracking import RunHandle, charts
from omniloom.infra.tree import revision
from omniloom.pipelines import continuing, kept, predecessors, run_card
from omniloom.pipelines.bodies import Bodies
from omniloom.pipelines.config import placed
from omniloom.pipelines.display import Display
from omniloom.pipelines.failures import Pruned, told
from omniloom.pipelines.fingerprint import canonical
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.planned import PlannedStage
from omniloom.pipelines.record import Record
from omniloom.pipelines.runlog import RunLog
from omniloom.stages.base import StageContext

_SHOWN_BY_PARENT = ("evaluation",)  # what the run as a whole is judged by: its row in the UI shows it
_PACKAGES = ("omniloom", "torch", "ray", "deepspeed", "mlflow", "pyarrow", "av", "pillow", "tokenizers")


@dataclass
class Maker:
    """Makes the artifacts of one run.

    board        where stages' bodies say how far they are (`infra.progress`)
    parent       the MLflow run of the whole
    interrupted  is set where the run is to end
    pruned       by stage, why a sweep ends its training; `of_a_sweep`: which notes down by itself what was used last
    """

    plan: Plan
    display: Display
    record: Record
    log: RunLog
    bodies: Bodies
    board: Any
    parent: RunHandle
    interrupted: threading.Event
    pruned: Mapping[str, str]
    of_a_sweep: bool = False

    @property
    def store(self) -> ArtifactStore:
        return self.plan.store

    def make(self, planned: PlannedStage) -> Artifact:
        """Make one artifact; or take one that was published since the plan was made, unless the stage is forced."""
        lease = Lease(
            storage.join(self.store.root, "leases", planned.name, f"{planned.fingerprint}.json"),
            on_wait=lambda held: self._note_waiting(planned, held),
            on_lost=lambda: self.bodies.end(planned.name),
            give_up=self.interrupted,
        )
        try:
            with lease:
                work = self.store.work_uri(planned.name, planned.fingerprint)
                current = self.store.finish_publishing(
                    planned.name, planned.fingerprint, work, lambda text: self.display.note(f"{planned.name} {text}")
                ) or self.store.find(planned.name, planned.fingerprint)
                seen = planned.artifact and planned.artifact.manifest
                if current and current.manifest != seen and planned.name not in self.plan.selection.force:
                    return self._adopt(planned, current)
                made_from = self.plan.made_from(planned)
                if planned.status == "run" or not self.store.has_work(planned.name, planned.fingerprint, made_from):
                    lease.require()
                    storage.remove(work)
                return self._adopt(planned, self._execute(planned, work, lease))
        except Exception as error:
            if planned.name in self.pruned:
                raise Pruned(self.pruned[planned.name]) from error
            failure = told(planned.name, error)
            raise (placed(self.plan.config, failure) if isinstance(failure, InputError) else failure) from error

    def _note_waiting(self, planned: PlannedStage, held: dict | None) -> None:
        by = shown(held["owner"]) if held else "unknown"
        self.display.note(f"another run ({by}) makes it; waiting", planned.name)

    def _adopt(self, planned: PlannedStage, artifact: Artifact) -> Artifact:
        if not self.of_a_sweep:
            self.store.set_last_used(self.plan.config.name, artifact)
        return artifact

    def _execute(self, planned: PlannedStage, work: str, lease: Lease) -> Artifact:
        inputs = {r: artifact for r, name in planned.inputs.items() if (artifact := self.plan[name].artifact)}
        tracker = self.parent.child(
            planned.name,
            {
                "omniloom.fingerprint": planned.fingerprint,
                "omniloom.reason": planned.reason,
                "omniloom.logs": self.log.of_stage(planned.name),
                **run_card.origin(revision()),
                run_card.DESCRIPTION: f"{planned.name} of {self.plan.config.name}: {planned.reason}",
            },
            canonical(planned.config, planned.name, paths=True),
        )
        for artifact in inputs.values():
            tracker.log_input(artifact.stage, artifact.uri, artifact.fingerprint)
            upstream = artifact.manifest.get("mlflow_run_id")
            if upstream:
                tracker.set_tags({f"omniloom.upstream.{artifact.stage}": upstream})
        digests = self.plan.made_from(planned) or {}
        place, reachable_inputs, logs = work, inputs, self.log.of_stage(planned.name)
        if storage.is_process_local(work):
            # Workers are other processes: they get a folder of this machine, and the driver carries the files.
            scratch = Path(tempfile.mkdtemp(prefix="omniloom-"))
            place, logs = str(scratch / "work"), str(scratch / "logs")
            storage.copy_tree(work, place)
            reachable_inputs = {
                role: Artifact(a.stage, a.fingerprint, str(a.local()), a.manifest) for role, a in inputs.items()
            }
        earlier = predecessors.settled(
            self.store,
            self.plan.config.name,
            planned,
            digests,
            work,
            planned.name in self.plan.selection.force or bool(planned.artifact),
        )
        output = self.store.begin_work(planned.name, planned.fingerprint, digests)
        context = StageContext(
            planned.name,
            planned.fingerprint,
            planned.config,
            reachable_inputs,
            place,
            Progress(planned.name, self.board),
            tracker,
            self.plan.config.name,
            continuing.continued(self.plan.trainings, planned),
            earlier,
            output if place == work else None,
            logs,
        )
        began = time.time(), time.monotonic()
        status = "FAILED"
        try:
            Holder.write(context.state, lease.owner)
            metrics = finite(self.bodies.run(planned, context))
            if place != work:
                storage.copy_tree(place, work)
            facts = self._facts(planned, inputs, metrics, began, tracker)
            lease.require()
            artifact = self.store.publish(planned.name, planned.fingerprint, work, facts)
            tracker.log_output(planned.name, artifact.uri, planned.fingerprint)
            numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
            # A training stage's figures belong to its last step, where its curves end.
            shown = charts.charted(numbers, charts.sections(planned.stage.makes))
            tracker.log_metrics(shown, step=metrics.get("steps", 0))
            if planned.stage.makes in _SHOWN_BY_PARENT:
                self.parent.log_metrics(shown)
            status = "FINISHED"
            return artifact
        except Exception as error:
            if self.interrupted.is_set() or planned.name in self.pruned:
                status = "KILLED"
            else:
                tracker.log_text(str(error), "error.txt")
                if lease.lost.is_set():
                    lease.require()  # the body was ended for it: that is the cause
            raise
        finally:
            if place != work:
                storage.copy_tree(logs, self.log.of_stage(planned.name))
                storage.remove(str(scratch))
            self._keep_logs(planned.name, tracker)
            tracker.finish(status)

    def _keep_logs(self, stage: str, tracker: RunHandle) -> None:
        """The ends of the logs of the stage's workers, with its MLflow run."""
        with contextlib.suppress(Exception):  # a storage that is away ends a run by itself
            for name, text in self.log.texts(stage).items():
                tracker.log_text(text, f"logs/{name}")

    def _facts(
        self,
        planned: PlannedStage,
        inputs: dict[str, Artifact],
        metrics: dict,
        began: tuple[float, float],
        tracker: Any,
    ) -> dict:
        """`began`: by the clock that people read, and by one that nobody sets."""
        started, seconds, ended = began[0], time.monotonic() - began[1], time.time()
        return {
            **identity_facts(planned, inputs),
            "metrics": metrics,
            "code": revision(),
            "packages": package_versions(),
            "reserved": _reserved(planned),
            "pipeline": self.plan.config.name,
            "run": self.record.id,
            "times": {
                "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
                "ended": datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds"),
                "ended_unix": ended,
                "seconds": round(seconds, 2),
            },
            "mlflow_run_id": tracker.run_id(2.0),
        }


def identity_facts(planned: PlannedStage, inputs: dict[str, Artifact]) -> dict[str, Any]:
    """What a manifest says of what its artifact is, and was made from."""
    return {
        "stage": planned.name,
        "version": planned.stage.module.VERSION,
        "fingerprint": planned.fingerprint,
        "config": canonical(planned.config, planned.name),
        "inputs": {artifact.stage: artifact.fingerprint for artifact in inputs.values()},
        "input_digests": {artifact.stage: artifact.digest for artifact in inputs.values()},
        **getattr(planned.config, "enters_fingerprint", {}),
        **kept.learnt_from(planned),
        "made_of": kept.made_of(planned, inputs),
        "sources": planned.sources,
        "outside": planned.outside,
    }


def _reserved(planned: PlannedStage) -> dict[str, float]:
    """The CPUs and GPUs that a stage has for itself, with its workers."""
    needs = planned.stage.needs(planned.config)
    return {"cpus": needs.cpus + needs.worker_cpus, "gpus": needs.gpus + needs.worker_gpus}


def package_versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
