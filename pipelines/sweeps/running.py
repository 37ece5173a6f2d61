"""Runs the trials of a sweep, one after another or side by side, and says what came out.

A trial is one run of the pipeline (`pipelines.runner`) in a thread of its own, on one cluster, with its MLflow run
below the sweep's. One that needs an artifact which another is just making waits until it is there; one that fails ends
itself alone. What is finished is cached, so that an interrupted sweep goes on where it was; which trials were pruned
stands in the sweep's folder.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from omniloom.infra import cluster
from omniloom.infra.errors import InputError
from omniloom.infra.head import Head
from omniloom.infra.tracking import RunHandle, Tracker, close_stale, replay, resolve_tracking
from omniloom.infra.tree import revision
from omniloom.pipelines import run_card, runner
from omniloom.pipelines.config import naming
from omniloom.pipelines.display import Display
from omniloom.pipelines.failures import Pruned
from omniloom.pipelines.sweeps import foretelling
from omniloom.pipelines.sweeps import results as outcome
from omniloom.pipelines.sweeps.folder import Folder
from omniloom.pipelines.sweeps.page import render
from omniloom.pipelines.sweeps.part import Part
from omniloom.pipelines.sweeps.pruning import Pruner, Validations
from omniloom.pipelines.sweeps.results import Result, Results
from omniloom.pipelines.sweeps.room import Room
from omniloom.pipelines.sweeps.search import Optuna, Search
from omniloom.pipelines.sweeps.trials import Made, Trial, Trials

_LOOK_SECONDS = 0.5


def run(trials: Trials, display: Display) -> tuple[Results, Trial | None]:
    """Bring all trials up to date; gives what came out, and the best trial. Raises InputError where nothing was
    started; failed trials are among the results."""
    config = trials.base
    settings = resolve_tracking(config.tracking, config.storage)  # InputError before anything is started
    first = (trials.known or trials.probes)[0]
    names = [planned.name for planned in first.plan.to_execute]
    with display:
        if trials.known and not any(trial.to_make for trial in trials.known):
            sweep = _Sweep(trials, display, None, None)
            return sweep.execute()
        with naming(first.config), runner.connection(first.config, names) as connect:
            display.note("starting Ray")
            connected = connect()
            replay(settings)
            close_stale(settings, config.name)
            parent = Tracker(settings).start_pipeline(
                config.name,
                config.model_dump(mode="json", by_alias=True),
                {"omniloom.sweep": Folder(config).id, **run_card.origin(revision())},
                f"{config.name}: sweep of {trials.count} trials",
            )
            status = "FAILED"
            try:
                found = _Sweep(trials, display, connected, parent).execute()
                status = "FAILED" if found[0].failed else "FINISHED"
                return found
            except KeyboardInterrupt:
                status = "KILLED"
                raise
            finally:
                display.page = parent.url(2.0)
                parent.finish(status)


class _Sweep:
    """One execution. `connected` and `parent` are None where nothing has to be made."""

    def __init__(self, trials: Trials, display: Display, connected: cluster.Cluster | None, parent: RunHandle | None):
        self.trials, self.display, self.connected, self.parent = trials, display, connected, parent
        self.sweep, self.folder = trials.sweep, Folder(trials.base)
        self.known = {row["trial"]: row for row in self.folder.known()}
        self.pending: list[Trial] = list(trials.known)
        self.by_number = {trial.number: trial for trial in trials.known}
        self.running: dict[Future, Trial] = {}
        self.rows: dict[int, Result] = {}
        self.failures: dict[Made, tuple[int, str]] = {}  # what could not be made, by which trial, and why
        self.heard: dict[int, list] = {}  # by trial, its pruned stage's validations
        self.stop = threading.Event()
        self.search: Search | None = Optuna(self.sweep) if trials.chosen_late else None
        self.asked = self.told = 0  # trials that the search chose, and whose outcome it knows
        self.pruner: Pruner | None = None
        if prune := self.sweep.prune:
            stages = [getattr(trial.config.stages, prune.stage) for trial in trials.known or trials.probes]
            self.pruner = Pruner(prune, max(stage.steps for stage in stages))

    def execute(self) -> tuple[Results, Trial | None]:
        try:
            self._go_through()
        except BaseException:
            for future, trial in self.running.items():
                self._settle(trial, future)
            self.folder.write(self._results())
            raise
        return self._close()

    def _go_through(self) -> None:
        room = Room(self.connected.nodes if self.connected else ())
        head = Head(self.connected.address, self.connected.id, self.connected.local) if self.connected else None
        with ThreadPoolExecutor(self.sweep.concurrent, thread_name_prefix="trial") as pool:
            try:
                seen = None
                while len(self.rows) < self.trials.count:
                    self._ask()
                    progress = len(self.rows), [len(trial.plan.done) for trial in self.running.values()]
                    if progress != seen:  # what the pending ones need may be there now
                        seen = progress
                        self._start(pool, room)
                    finished, _ = wait(self.running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
                    if head:
                        head.require()
                    for future in finished:
                        self._settle(self.running.pop(future), future)
            except BaseException:
                self.stop.set()  # before the pool waits: each run keeps what is done, and closes its records
                raise

    # ---- which trials there are ----

    def _ask(self) -> None:
        """Make the trials that the search may be asked for by now, and tell it what came out of those before."""
        if self.search is None:
            return
        while (number := self.asked + 1) <= self.trials.count:
            while self.told < number - self.sweep.concurrent:
                if (row := self.rows.get(self.told + 1)) is None:
                    return
                self.told += 1
                self.search.tell(self.told, row.figure.value if row.figure and row.status == "finished" else None)
            values, self.asked = self.search.ask(number), number
            try:
                trial = self.trials.make(number, values)
            except InputError as error:
                self.rows[number] = Result(number, values, f"trial {number}", "failed", why=str(error))
                self.display.note(f"trial {number} cannot be: {error}")
                continue
            self.by_number[number] = trial
            self.pending.append(trial)

    # ---- which of them run ----

    def _start(self, pool: ThreadPoolExecutor, room: Room) -> None:
        for trial in list(self.pending):
            if len(self.running) >= self.sweep.concurrent:
                return
            try:
                with naming(trial.config):
                    trial.plan = self.trials.planned(trial.config)
            except InputError as error:  # of what others made meanwhile
                self.pending.remove(trial)
                self._note(outcome.ended(trial, "failed", str(error)))
                continue
            others = list(self.running.values())
            making = {made for other in others for made in other.to_make}
            if making & set(trial.to_make) or not room.takes(trial, others):
                continue
            self.pending.remove(trial)
            if (row := self._without_running(trial)) is not None:
                self._note(row)
                continue
            self.display.note(f"trial {trial.number} of {self.trials.count}: {trial.title}")
            self.running[pool.submit(self._run, trial)] = trial

    def _without_running(self, trial: Trial) -> Result | None:
        """What came out of a trial that has not to run: all of it is there, it was pruned before, or what it needs
        could not be made."""
        if not trial.to_make:
            row = outcome.finished(trial, self.sweep.goal, (), None)
            if self.pruner:
                self.pruner.hear(trial.number, row.validations, last=True)
            return row
        for made in trial.to_make:
            if made in self.failures:
                number, why = self.failures[made]
                return outcome.ended(trial, "failed", f"as trial {number}: {why}")
        before = self._pruned_before(trial)
        if before and self.pruner and before.pruned == trial.to_make[0]:
            self.pruner.hear(trial.number, before.validations, last=True)
            return before
        return None

    def _pruned_before(self, trial: Trial) -> Result | None:
        """As an earlier run of the sweep noted it down."""
        noted = self.known.get(trial.number)
        if not noted or noted["status"] != "pruned" or noted["values"] != dict(trial.values):
            return None
        row = outcome.ended(trial, "pruned", noted["why"], (), noted["log"])
        stage, fingerprint = noted["pruned"]
        row.pruned, row.validations = (stage, fingerprint), noted["validations"]
        return row

    def _run(self, trial: Trial) -> str | None:
        """In a thread of its own: the trial's run. Gives where its log lies."""
        assert self.connected and self.parent
        part = Display(Part(self.display.view, f"{trial.number}/"))
        around = runner.Surroundings(
            self.connected,
            self.parent,
            f"{self.trials.base.name}: trial {trial.number}: {trial.title}"[:250],
            {"omniloom.sweep": self.folder.id, "omniloom.trial": str(trial.number)},
            self.stop,
            functools.partial(self._judge, trial),
        )
        try:
            with naming(trial.config):
                runner.run(trial.plan, part, around)
        finally:
            trial.log = part.log.uri if part.log else None
        return trial.log

    def _judge(self, trial: Trial, states: Mapping[str, Mapping]) -> Mapping[str, str]:
        """Called from the trial's thread: which of its trainings are to be pruned, and why."""
        if self.pruner is None:
            return {}
        stage = self.pruner.config.stage
        heard: Validations = states.get(stage, {}).get("validations", ())
        if not heard:
            return {}
        self.heard[trial.number] = list(heard)
        steps = getattr(trial.config.stages, stage).steps
        last = heard[-1][0] >= steps
        why = self.pruner.hear(trial.number, heard, last)
        return {stage: why} if why and not last else {}

    # ---- how they end ----

    def _settle(self, trial: Trial, future: Future) -> None:
        executed = _executed(trial)
        error = future.exception()
        if error is None:
            row = outcome.finished(trial, self.sweep.goal, executed, trial.log)
        elif isinstance(error, Pruned):
            row = outcome.ended(trial, "pruned", str(error), executed, trial.log)
            row.pruned = next(made for made in trial.to_make if self.pruner and made[0] == self.pruner.config.stage)
            row.validations = self.heard.get(trial.number, ())
        elif isinstance(error, KeyboardInterrupt):
            row = outcome.ended(trial, "not run", "interrupted", executed, trial.log)
        else:
            if isinstance(error, InputError) and (error.field or "").startswith("sweep."):
                raise error
            row = outcome.ended(trial, "failed", f"{error}".splitlines()[0], executed, trial.log)
            if trial.to_make:
                self.failures[trial.to_make[0]] = trial.number, row.why
        self._note(row)

    def _note(self, row: Result) -> None:
        self.rows[row.number] = row
        found = f": {self.sweep.goal.name} {row.figure.value:.4g}" if row.figure else f": {row.why}" if row.why else ""
        self.display.note(f"trial {row.number} {row.status}{found}")
        if self.parent and row.figure:
            self.parent.log_metrics({f"sweep/{self.sweep.goal.name}": row.figure.value}, step=row.number)
        self.folder.write(self._results())

    def _results(self) -> Results:
        """As far as they are known."""
        waiting = [
            self._pruned_before(trial) or outcome.ended(trial, "not run", "")
            for number, trial in self.by_number.items()
            if number not in self.rows
        ]
        rows = sorted([*self.rows.values(), *waiting], key=lambda row: row.number)
        return Results(self.trials.base.name, self.folder.id, self.sweep.goal, rows)

    def _close(self) -> tuple[Results, Trial | None]:
        found = self._results()
        outcome.add_seconds(found.rows, self.by_number)
        outcome.test(found, self.by_number)
        found.foretold = foretelling.foretold(found, self.by_number, self.sweep)
        page = render(found, self.trials, self.by_number)
        self.folder.write_all(found, page)
        best = self.by_number[found.best.number] if found.best else None
        if best:
            runner.use(best.plan)
        if self.parent:
            _tell(self.parent, found, page)
        return found, best


def _executed(trial: Trial) -> list[str]:
    """The stages that the trial's run made itself, in order."""
    run = (trial.log or "").rpartition("/")[2].removesuffix(".log")
    made = [planned for planned in trial.plan.stages if planned.name in trial.plan.done and planned.artifact]
    return [planned.name for planned in made if planned.artifact and planned.artifact.manifest.get("run") == run]


def _tell(parent: RunHandle, found: Results, page: str) -> None:
    """On the sweep's page in MLflow: the table, and which trial is best."""
    parent.log_text(page, "report.html")
    parent.log_text(found.to_csv(), "trials.csv")
    lines = [f"**{found.verdict}**", ""] if found.best else []
    lines += [f"| trial | {found.goal.metric} | status | |", "|---|---|---|---|"]
    for row in found.rows:
        value = f"{row.figure.value:.4g}" if row.figure else ""
        lines.append(f"| {row.number}: {row.title.replace('|', '/')} | {value} | {row.status} | {row.why[:100]} |")
    tags = {run_card.DESCRIPTION: "\n".join(lines)}
    if best := found.best:
        tags |= {"omniloom.best": f"trial {best.number}: {best.title}"}
        assert best.figure
        parent.log_metrics({f"best/{found.goal.name}": best.figure.value})
    parent.set_tags(tags)
