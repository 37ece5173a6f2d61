"""Bodies: the stages' bodies as Ray tasks: started, started again where a process was killed, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

from omniloom.infra import storage, worker_log
from omniloom.infra.cluster import Cluster
from omniloom.infra.errors import OmniLoomError
from omniloom.infra.failures import carried, line, of_passing_kind, root_cause
from omniloom.infra.retries import Retries
from omniloom.infra.training import hangs
from omniloom.infra.training.config import HANG_SECONDS
from omniloom.infra.training.rhythm import Rhythm
from omniloom.infra.training.watch import Watch, stacks
from omniloom.infra.waiting import settled
from omniloom.pipelines.planned import PlannedStage
from omniloom.stages.base import Stage, StageContext

_LOOK_SECONDS = 2.0
_TOLD_SECONDS = 10.0  # for the last words of a body that hangs
_TOLD = 143  # exit code of a process that was told to end
_CANCEL_SECONDS = 5.0  # for a body that is told to end; then its process is


class Bodies:
    """The bodies that run on one cluster. `note` is given a line where one is started again, and `environment` gives
    the runtime environment of the next."""

    def __init__(
        self,
        cluster: Cluster,
        note: Callable[[str], None],
        board: Any,
        environment: Callable[[], dict[str, Any] | None],
    ):
        self.cluster, self.note, self.board, self.environment = cluster, note, board, environment
        self._running: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._closed, self._abandoned = threading.Event(), threading.Event()
        self._state = threading.Lock()

    def run(self, planned: PlannedStage, context: StageContext) -> dict:
        """Run the body to its end; gives its metrics. Raises what Ray raises.

        A body whose process was killed, as the system does where memory runs out, or whose storage did not answer, goes
        on in another one (`infra.retries`): progress is what the stage noted as done.
        """
        import ray

        needs = planned.stage.needs(planned.config)
        # A body that asks for more CPUs than any node has would wait for ever; on fewer it only takes longer.
        task = ray.remote(run_stage).options(
            num_cpus=min(needs.cpus, self.cluster.node_cpus),
            num_gpus=needs.gpus,
            max_retries=0,
            name=planned.name,
            runtime_env=self.environment(),
        )
        grace, seen = planned.stage.grace(planned.config), _done(context.state)
        retries = Retries(planned.stage.restarts(planned.config), len(seen))
        while True:
            with self._state:
                ended = self._closed.is_set() or planned.name in self._ended
                if not ended:
                    self.board.goes_on.remote(planned.name)
                reference = self._running[planned.name] = task.remote(planned.stage, context, grace)
            try:
                if ended:
                    ray.cancel(reference)
                return self._result(reference)
            except Exception as error:
                if self._closed.is_set() or planned.name in self._ended or not self._may_pass(error):
                    raise
                seen |= _done(context.state)
                self._pause(retries.failed(len(seen)), retries, planned.name, error)
            finally:
                self._running.pop(planned.name, None)

    def _result(self, reference: Any) -> dict:
        """What the body gives; BodyLost where nobody will ever tell."""
        import ray

        future = reference.future()  # one for all looks: each that is made is kept until the body ends
        while not wait([future], _LOOK_SECONDS).done:
            if self._abandoned.is_set():
                raise BodyLost("nobody knows what became of it")
        return ray.get(reference)

    def abandon(self) -> None:
        """Wait for no body any more: the cluster that they run on is gone."""
        self._closed.set()
        self._abandoned.set()

    def _may_pass(self, error: Exception) -> bool:
        from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

        if isinstance(error, NodeDiedError):
            return not self.cluster.local  # else the only node is the dead one
        if isinstance(error, WorkerCrashedError | OutOfMemoryError):
            return True
        return isinstance(error, RayTaskError) and of_passing_kind(root_cause(error))

    def _pause(self, seconds: float | None, retries: Retries, name: str, error: Exception) -> None:
        """Before the next try; raises where there is none."""
        words = line(root_cause(error))
        if seconds is None:
            raise BodyLost(
                f"its process died {retries.often} without progress, the last time: {words}; what is done is kept, and "
                "the next run goes on from there"
            ) from error
        self.note(f"{name}: {words}; it goes on in another process ({retries.told})")
        if self._closed.wait(seconds):
            raise error

    def end(self, *names: str, grace: float = 0.0) -> None:
        """End these stages' bodies, or all. Those that train are asked to keep what is done, for so many seconds; what
        still runs then is interrupted, and after some seconds its process killed."""
        import ray

        with self._state:
            running = {name: task for name, task in self._running.items() if not names or name in names}
            self._ended.update(names)
            if not names:
                self._closed.set()
        tasks = list(running.values())
        with contextlib.suppress(Exception):  # a cluster that is gone has nothing left to end
            if tasks and grace:
                self.board.ask_to_stop.remote(list(running))
                _, tasks = settled(tasks, grace)
            for task in tasks:
                ray.cancel(task)
            _, left = settled(tasks, _CANCEL_SECONDS)
            for task in left:
                ray.cancel(task, force=True)


class BodyLost(OmniLoomError):
    """A stage's process died too often without progress."""


def _done(state: str) -> set[str]:
    """What a stage has noted as done: the names of its shards' and checkpoints' records."""
    names = storage.list_files(state)
    return {name for name in names if name.endswith(".json") and not name.startswith("ray_train/")}


def run_stage(stage: Stage, context: StageContext, grace: float = 0.0) -> dict:
    """The body of the Ray task: the stage's own, watched by the rhythm of its progress, and the end of this process's
    tracking. Told to end by a signal, it has `grace` seconds to keep what is done; another process goes on with it."""
    thread = threading.get_ident()

    def on_hang(seconds: float, limit: float) -> None:
        text, place = stacks(thread)
        told = f"no progress for {seconds:.0f} s, where {limit:.0f} s are usual at most; it stands at {place}"
        context.progress.note(f"{told}; its process is ended")
        context.progress.say("it hangs")
        context.tracker.log_text(f"{told}\n{text}", "hangs/body.txt")
        context.tracker.close(_TOLD_SECONDS)
        os._exit(hangs.EXIT)

    watching = Watch(Rhythm(HANG_SECONDS), on_hang)
    log = worker_log.kept(context.logs, "body")
    with log, watching as watch, context.progress.heard_by(watch.beat), _told(context, grace) as told:
        try:
            return stage.run(context)
        except Exception as error:
            if told.is_set():
                context.tracker.close(_TOLD_SECONDS)
                os._exit(_TOLD)
            raise carried(error) from error
        finally:
            context.tracker.close()


@contextlib.contextmanager
def _told(context: StageContext, grace: float) -> Iterator[threading.Event]:
    """In the block the first SIGTERM asks the stage's workers to keep what is done, and sets the event; the process
    ends when they have, or after `grace` seconds. Without any, as with the second, it ends at once, as Ray has it."""
    told, ended = threading.Event(), threading.Event()

    def ask() -> None:
        context.progress.note(f"its process is told to end; up to {grace:g} s for a checkpoint")
        context.progress.ask_to_stop("a signal to the stage's process")
        if not ended.wait(grace):
            os._exit(_TOLD)

    def heed(number: int, frame: Any) -> None:
        if told.is_set():
            os._exit(_TOLD)
        told.set()
        threading.Thread(target=ask, daemon=True, name="told to end").start()  # Ray may be within a call of ours

    if not grace:
        yield told
        return
    before = signal.signal(signal.SIGTERM, heed)
    try:
        yield told
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, before)
