"""Runner: executes a plan on Ray and publishes what the stages make.

Stages whose inputs are there run side by side, each as one Ray task (`pipelines.making`); the driver only waits, shows
progress, and publishes. Whatever dies, the work folders in storage are what the next run goes on from.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from omniloom.infra import cluster
from omniloom.infra.errors import InputError
from omniloom.infra.head import Head
from omniloom.infra.progress import start_board
from omniloom.infra.tracking import RunHandle, Tracker, TrackingSettings, close_stale, replay, resolve_tracking
from omniloom.infra.tree import revision
from omniloom.infra.waiting import answer
from omniloom.pipelines import installed, room, run_card
from omniloom.pipelines.ahead import Ahead
from omniloom.pipelines.bodies import Bodies
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.display import Display
from omniloom.pipelines.failures import Pruned
from omniloom.pipelines.making import Maker
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.planned import PlannedStage
from omniloom.pipelines.record import Record
from omniloom.pipelines.runlog import RunLog

_CLOSING_SECONDS = 10.0  # for MLflow runs and leases, once bodies have ended


@dataclass(frozen=True)
class Surroundings:
    """What a run has from the sweep that it is a trial of: the cluster, the sweep's MLflow run, its own title and tags;
    `stop`, set where the sweep is to end; `judge`, which is given what the board says and gives the trainings that are
    to be pruned, with why."""

    cluster: cluster.Cluster
    parent: RunHandle
    title: str
    tags: Mapping[str, str]
    stop: threading.Event
    judge: Callable[[Mapping[str, Mapping]], Mapping[str, str]]


def run(plan: Plan, display: Display, around: Surroundings | None = None) -> None:
    """Bring the plan's selection up to date. Raises InputError (nothing was started) or StageFailed; of a trial also
    Pruned. Trials leave open what the pipeline used last: the sweep says so at its end (`use`)."""
    _check_blocked(plan)
    if not plan.to_execute:
        if not around:
            use(plan)
        return
    settings = resolve_tracking(plan.config.tracking, plan.config.storage)  # InputError before anything is started
    names, given = [planned.name for planned in plan.to_execute], around.cluster if around else None
    with connection(plan.config, names, given) as connect, display:
        with (
            Record(plan.config.storage, plan.config.name, plan.artifacts) as record,
            RunLog(plan.store.root, record.id) as log,
        ):
            display.log = log
            plan.store.remove_leftovers()
            if display.remaining:
                display.note(display.remaining.line())
            display.note(f"log: {log.uri}; its workers' beside it, in {record.id}/STAGE/")
            for damage in plan.examine_inputs():
                display.note(damage, level="warning")
            record.uses(plan.artifacts)
            _check_blocked(plan)
            for text in plan.warnings:
                display.note(text, level="warning")
            if not around:
                display.note("starting Ray")
            _Run(plan, display, connect(), settings, record, log, around).execute()


def use(plan: Plan) -> None:
    """Note down the plan's artifacts as those that the pipeline used last."""
    for planned in plan.stages:
        if planned.artifact and planned.name not in plan.config.pins:
            plan.store.set_last_used(plan.config.name, planned.artifact)


@contextlib.contextmanager
def connection(
    config: PipelineConfig, names: Sequence[str], given: cluster.Cluster | None = None
) -> Iterator[Callable[[], cluster.Cluster]]:
    """What connects to Ray, or to the cluster that is `given`, for the stages of these names. InputError where this
    machine, or the cluster, which is asked before anything is written, has too little room or other extensions. A Ray
    that the caller had before is the caller's to end."""
    opened: list[cluster.Cluster] = []

    def connect() -> cluster.Cluster:
        if not opened:
            opened.append(given or cluster.connect_to(config.cluster))
            room.check(config, names, opened[0].nodes)  # in a container Ray counts fewer CPUs than the machine
            installed.check(config)
        return opened[0]

    try:
        if given is None and cluster.starts_here(config.cluster):
            room.check(config, names)
        else:
            connect()
        yield connect
    finally:
        if opened and opened[0].opened and given is None:
            cluster.shutdown()


def _check_blocked(plan: Plan) -> None:
    if plan.blocked:
        first = plan.blocked[0]
        raise InputError(f"{first.name} is blocked: {first.reason}")


class _Run:
    """One execution: a parent MLflow run, a child per executed stage, and a record in storage."""

    def __init__(
        self,
        plan: Plan,
        display: Display,
        connected: cluster.Cluster,
        settings: TrackingSettings,
        record: Record,
        log: RunLog,
        around: Surroundings | None = None,
    ):
        self.around, self.pruned = around, dict[str, str]()  # by stage, why
        self.plan, self.display, self.settings, self.record = plan, display, settings, record
        self.log = log
        self.board = start_board()
        self.ahead = Ahead(plan)
        self.bodies = Bodies(connected, display.note, self.board, self.ahead.environment)
        self.head = Head(connected.address, connected.id, connected.local)
        self.interrupted = threading.Event()

    def execute(self) -> None:
        replay(self.settings)  # neither raises, whatever tracking answers
        close_stale(self.settings, self.plan.config.name)
        why, differs = run_card.reasons(self.plan), run_card.differences(self.plan)
        self.parent = Tracker(self.settings).start_pipeline(
            self.plan.config.name,
            self.plan.config.model_dump(mode="json"),
            {
                "omniloom.run": self.record.id,
                "omniloom.log": self.log.uri,
                **run_card.tags(self.plan, revision()),
                **(self.around.tags if self.around else {}),
            },
            self.around.title if self.around else run_card.title(self.plan),
            self.around.parent if self.around else None,
        )
        made_by = (self.plan, self.display, self.record, self.log, self.bodies, self.board, self.parent)
        maker = Maker(*made_by, self.interrupted, self.pruned, self.around is not None)
        status = "FAILED"
        try:
            self._schedule(maker)
            self._describe(why, differs)
            status = "FINISHED"
        except (KeyboardInterrupt, Pruned) as ended:
            status = "KILLED"
            if isinstance(ended, Pruned):
                self.parent.set_tags({"omniloom.pruned": str(ended)})
            raise
        finally:
            self.display.page = self.parent.url(2.0)  # while its journal is there to tell
            self.parent.log_text(self.log.text(), "logs/run.log")
            self.parent.finish(status)

    def _describe(self, why: str, differs: str) -> None:
        """The run's page says at a glance what came of it, and of which data."""
        text = run_card.description(
            self.plan, why, differs, lambda run_id, file: self.parent.artifact_link(run_id, file, 2.0)
        )
        self.parent.set_tags({run_card.DESCRIPTION: text})
        if (records := self.plan.last("records")) and (artifact := records.artifact):
            self.parent.log_input(artifact.stage, artifact.uri, artifact.fingerprint)

    def _schedule(self, maker: Maker) -> None:
        running: dict[Future, PlannedStage] = {}
        pool = ThreadPoolExecutor(len(self.plan.stages), thread_name_prefix="stage")
        failure: BaseException | None = None
        try:
            while True:
                if failure is None:
                    for planned in self._ready(running):
                        self.display.start(planned.name, planned.reason)
                        self.ahead.start(planned, (other.name for other in running.values()))
                        running[pool.submit(maker.make, planned)] = planned
                if not running:
                    break
                finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                states = self._show_progress()
                self._heed_sweep(states)
                if failure is None:
                    self.ahead.look((planned.name for planned in running.values()), states)
                self.record.renew()
                self.head.require()
                for future in finished:
                    error = self._settle(running.pop(future), future)
                    failure = failure or error
        except BaseException:
            self._stop(running)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failure:
            raise failure
        if not self.around:
            use(self.plan)

    def _heed_sweep(self, states: dict[str, dict]) -> None:
        """End as a whole, or a training, where the sweep around wants it."""
        if self.around is None:
            return
        if self.around.stop.is_set():
            raise KeyboardInterrupt
        for name, why in self.around.judge(states).items():
            if name not in self.pruned:
                self.pruned[name] = why
                self.display.note(f"is pruned: {why}; its checkpoint is kept", name)
            self.board.ask_to_stop.remote([name], f"the sweep: {why}")  # each time: another process may have taken over

    def _settle(self, planned: PlannedStage, future: Future) -> Exception | None:
        """Note how a stage ended; the error, where it failed."""
        try:
            artifact = future.result()
        except Exception as error:
            status = "pruned" if isinstance(error, Pruned) else "failed"
            self.record.stage(planned.name, status=status, error=str(error))
            self.display.fail(planned.name, error)
            return error
        known, waiting = self.plan.warnings, [other.name for other in self.plan.to_execute if other != planned]
        self.plan.completed(planned.name, artifact)
        if stay := [name for name in waiting if self.plan[name].status == "cached"]:
            self.display.note(f"{planned.name} came out as before; up to date: {', '.join(stay)}")
            self.display.skip(stay)
        for text in self.plan.warnings:
            if text not in known:
                self.display.note(text, level="warning")
        self.record.uses(self.plan.artifacts)
        self.record.stage(planned.name, status="finished", fingerprint=artifact.fingerprint)
        self.display.finish(
            planned.name,
            artifact.manifest["times"]["seconds"],
            artifact.metrics,
            planned.stage.summary(artifact.metrics),
        )
        return None

    def _stop(self, running: dict[Future, PlannedStage]) -> None:
        """End what runs, and give the stages the time for a checkpoint, and to close their MLflow runs and leases."""
        self.interrupted.set()
        cluster.expect_deaths()
        if self.head.gone:
            self.bodies.abandon()
        else:
            grace = max((planned.stage.grace(planned.config) for planned in running.values()), default=0.0)
            if grace:
                self.display.note(f"waiting up to {grace:g} s for a checkpoint; a second signal ends at once")
            self.bodies.end(grace=grace)
        wait(running, timeout=_CLOSING_SECONDS)
        self._show_progress()  # what they noted last
        for planned in running.values():
            self.record.stage(planned.name, status="killed")

    def _ready(self, running: dict[Future, PlannedStage]) -> list[PlannedStage]:
        """Stages that can start: all that they depend on, however far up, is settled."""
        busy = {planned.name for planned in running.values()}
        pending = {planned.name for planned in self.plan.to_execute}
        return [
            planned
            for planned in self.plan.to_execute
            if planned.name not in busy and not pending & self.plan.graph.ancestors(planned.name)
        ]

    def _show_progress(self) -> dict[str, dict]:
        """What the board says of each stage; nothing where it does not answer."""
        states: dict[str, dict] = {}
        with contextlib.suppress(Exception):  # a busy board must not end a run
            states = answer(self.board.read.remote(), 2)
            self.display.update(states)
        return states
