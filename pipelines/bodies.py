"""Bodies: the stages' bodies as Ray tasks: started, started again where a process was killed, and ended."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from omniloom.infra.cluster import Cluster
from omniloom.pipelines.failures import carried, line
from omniloom.pipelines.planned import PlannedStage
from omniloom.stages.base import StageContext

_GRACE_SECONDS = 5.0  # for a body that is told to end; then its process is


class Bodies:
    """The bodies that run on one cluster. `note` is given a line where one is started again."""

    def __init__(self, cluster: Cluster, note: Callable[[str], None]):
        self.cluster, self.note = cluster, note
        self._running: dict[str, Any] = {}
        self._ended: set[str] = set()
        self._closed = False
        self._state = threading.Lock()

    def run(self, planned: PlannedStage, context: StageContext) -> dict:
        """Run the body to its end; gives its metrics. Raises what Ray raises.

        A body whose process was killed, as the system does where memory runs out, goes on in another one, as often as
        the stage's ranks do.
        """
        import ray

        needs = planned.stage.needs(planned.config)
        # A body that asks for more CPUs than any node has would wait for ever; on fewer it only takes longer.
        task = ray.remote(run_stage).options(
            num_cpus=min(needs.cpus, self.cluster.node_cpus), num_gpus=needs.gpus, max_retries=0, name=planned.name
        )
        again = [ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError]
        if not self.cluster.local:  # else the only node is the dead one
            again.append(ray.exceptions.NodeDiedError)
        restarts = planned.stage.restarts(planned.config)
        while True:
            with self._state:
                reference = self._running[planned.name] = task.remote(planned.stage, context)
                ended = self._closed or planned.name in self._ended
            try:
                if ended:
                    ray.cancel(reference)
                return ray.get(reference)
            except tuple(again) as error:
                if not restarts or self._closed or planned.name in self._ended:
                    raise
                restarts -= 1
                self.note(f"{planned.name}: {line(error)}; it goes on in another process")
            finally:
                self._running.pop(planned.name, None)

    def end(self, *names: str) -> None:
        """End these stages' bodies, or all: they are interrupted, and after some seconds their processes killed."""
        import ray

        with self._state:
            running = {name: task for name, task in self._running.items() if not names or name in names}
            self._ended.update(names)
            self._closed = self._closed or not names
        with contextlib.suppress(Exception):  # a cluster that is gone has nothing left to end
            for task in running.values():
                ray.cancel(task)
            _, left = ray.wait(list(running.values()), num_returns=len(running), timeout=_GRACE_SECONDS)
            for task in left:
                ray.cancel(task, force=True)


def run_stage(stage, context: StageContext) -> dict:
    """The body of the Ray task: the stage's own, and the end of this process's tracking."""
    try:
        return stage.run(context)
    except Exception as error:
        raise carried(error) from error
    finally:
        context.tracker.close()
