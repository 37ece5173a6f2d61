"""Control: Ray Train's controller, which starts the ranks, looks after them and says how they ended, in the process of
the stage's body, which would only wait for it.

Around a controller of its own Ray Train starts more processes, each of which imports all that this one has: one that
takes the ranks' room away where the controller dies (here `_Group` does, by its name, at the next attempt), and one
where ranks meet to report, which ours never do. None of them is started here.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import (
    TrainAutoscalingCoordinatorClient,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.state import WorkerGroupState, _shutdown_workers
from ray.train.v2._internal.util import invoke_context_managers
from ray.util.placement_group import get_placement_group, placement_group, remove_placement_group

_NEEDLESS = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(TorchTrainer):
    """Ray Train's own, with its controller in this process. `start_seconds` is how long the ranks that have their room
    may take until all have begun: longer, and one of them is stopped or hangs, and the group has failed."""

    def __init__(self, *arguments: Any, start_seconds: float, **named: Any):
        super().__init__(*arguments, **named)
        self._start_seconds = start_seconds

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]  # its base is not typed
        return [callback for callback in made if not isinstance(callback, _NEEDLESS)]

    def _initialize_and_run_controller(self, scaling_policy: Any, **given: Any) -> Any:
        if isinstance(scaling_policy, FixedScalingPolicy):
            scaling_policy = _Fixed(scaling_policy.scaling_config)
        controller = _Controller(self._start_seconds, scaling_policy=scaling_policy, **given)
        loop = asyncio.new_event_loop()  # it leaves the signals to who has them
        try:
            loop.run_until_complete(controller.run())
            return controller.get_result()
        except BaseException:
            controller.drop()
            raise
        finally:
            loop.close()


class _Controller(TrainController):
    def __init__(self, start_seconds: float, **given: Any):
        class Group(_Group):
            patience = start_seconds

        self.worker_group_cls = Group
        super().__init__(**given)

    def drop(self) -> None:
        """End the ranks at once, where this process is told to."""
        group: Any = self._worker_group
        if group:
            with contextlib.suppress(Exception):  # a Ray that is gone has no ranks either
                group.drop()


class _Fixed(FixedScalingPolicy):
    """Tells other trainings of the cluster, which take what is left, what this one takes; waits for no answer, as it
    needs none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        self._requester_id = f"train-{train_run_context.run_id}"
        self._coordinator_client = TrainAutoscalingCoordinatorClient(self._requester_id)
        self._coordinator_client._latest_autoscaling_request_time = time.monotonic()
        threading.Thread(target=self._send_resource_request, daemon=True, name="resources").start()


class _State(WorkerGroupState):
    """Of a group without a place to report."""

    def shutdown(self) -> None:
        _shutdown_workers(self.workers)
        self.placement_group_handle.shutdown()


class _Group(WorkerGroup):
    """The ranks. Their room has the training's name: what an attempt leaves that died is taken away by the next."""

    patience: float  # seconds

    def _start_impl(self, worker_group_state_builder: Any) -> None:
        context = self._worker_group_context
        self._check_cluster_resources_and_raise_if_insufficient(context.resources_per_worker, context.num_workers)
        around: list[Any] = [callback.on_worker_group_start for callback in self._callbacks]
        with invoke_context_managers(around):
            for callback in self._callbacks:
                callback.before_worker_group_start(context)
            room = self._room()
            with self._begins_in_time(room):
                self._start_ranks(room)

    def _room(self) -> DefaultPlacementGroupHandle:
        context, name = self._worker_group_context, self._train_run_context.run_config.name
        with contextlib.suppress(ValueError):  # there is none, in general
            remove_placement_group(get_placement_group(name))
        bundles = [context.resources_per_worker] * context.num_workers
        room, ready = (
            DefaultPlacementGroupHandle(placement_group(bundles, context.placement_strategy, name=name)),
            False,
        )
        try:
            ready = room.wait(self._worker_group_start_timeout_s)
        finally:
            if not ready:
                room.shutdown()
        if not ready:
            raise WorkerGroupStartupTimeoutError(num_workers=context.num_workers)
        return room

    def _start_ranks(self, room: DefaultPlacementGroupHandle) -> None:
        context = self._worker_group_context
        workers = self._create_workers(context.num_workers, room.placement_group, context.resources_per_worker)
        self._worker_rank_to_replica_group_rank = {rank: rank for rank in range(len(workers))}
        nowhere: Any = None  # to meet
        self._init_train_context(workers, nowhere)
        self._worker_group_state = _State(time.monotonic(), room, workers, nowhere)
        for callback in self._callbacks:
            callback.after_worker_group_start(self)
        ray.get([worker.actor.run_train_fn.remote(context.train_fn_ref) for worker in workers])
        for callback in self._callbacks:
            callback.after_worker_group_training_start(self)

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> dict[str, Any]:
        """As `ready` has told it: a body's own variables are its machine's, which the ranks' machines have too."""
        return dict(custom_runtime_env)

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        told = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,
                **{name: values[rank] for name, values in train_context_args.items()},
            )
            for rank, worker in enumerate(workers)
        ]
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)

    @contextlib.contextmanager
    def _begins_in_time(self, room: DefaultPlacementGroupHandle) -> Iterator[None]:
        """Without their room the ranks die, also those that are stopped, and whoever waits for them hears of it."""
        late = threading.Event()

        def end() -> None:
            late.set()
            room.shutdown()

        timer = threading.Timer(self.patience, end)
        timer.start()
        try:
            yield
        except BaseException as error:
            self._clear_state()
            room.shutdown()
            if late.is_set():
                raise WorkerHealthCheckTimeoutError(f"not all ranks had begun after {self.patience:g} s") from error
            if isinstance(error, RayError) and not isinstance(error, RayTaskError):
                raise WorkerGroupStartupFailedError("a rank died before it began") from error
            raise
        finally:
            timer.cancel()

    def drop(self) -> None:
        """End the ranks without a word to them."""
        if state := self._worker_group_state:
            for worker in state.workers:
                ray.kill(worker.actor)
            state.placement_group_handle.shutdown()

    def set_required_barrier_ranks(self, ranks: Any) -> bool:
        """Nobody waits for others to report."""
        return False
