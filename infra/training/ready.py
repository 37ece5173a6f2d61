"""Ready: processes that have imported what every rank needs, before Ray Train asks for the ranks; and those for the
actors by which Ray Train itself looks after them.

The imports take seconds, of every rank at once. Ray's nodes start such processes when they are asked to, keep them for
a while, and give them to the first actors that ask for the same runtime environment: the ranks. Where a node does not,
or the processes are gone by then, ranks start as they would have: slower, and to the same end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from typing import Any

from omniloom.infra.training.config import WorkersConfig
from omniloom.infra.training.heap import KEEPS_FREED

KEPT_SECONDS = 120  # for how long Ray keeps a process that no rank came for
# Ray Train's own patience with a process that answers nothing at all, which no thread of its own can notice.
_SILENCE = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
_POLL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"  # half of it passes between the last rank's end and the group's
_POLLED_RANKS = 64  # a second
_ASKED_SECONDS = 5.0
_MODULES = ("torch.distributed", "ray.train.torch", "omniloom.infra.training.group", "omniloom.infra.training.loop")
_CONTROL_MODULES = ("ray.train.v2._internal.execution.controller",)
_CONTROL_ACTORS = 3  # Ray Train's controller, what its reports meet at, and what removes its placement groups
_COORDINATOR = "AutoscalingCoordinator"  # its name and namespace; one more, which the first training of a Ray starts
_GPUS = "OMNILOOM_RANK_GPUS"
_JOB_HOOK = "OMNILOOM_JOB_HOOK"


def settings(workers: WorkersConfig) -> dict[str, str]:
    """The variables by which Ray Train is told how it watches its ranks."""
    return {_SILENCE: f"{2 * workers.hang_seconds:g}", _POLL: f"{min(2.0, max(0.5, workers.most / _POLLED_RANKS)):g}"}


def environment(workers: WorkersConfig) -> dict[str, Any]:
    """The runtime environment of ranks, on top of this process's own: their processes run `prepare` first. Those on
    CPUs keep what they free; on GPUs steps have their memory there, and what a save took of the host's goes back."""
    heap = {} if workers.gpus else KEEPS_FREED
    return {"env_vars": heap | _hooked("prepare") | {_GPUS: f"{workers.gpus:g}"}}


def control_environment() -> dict[str, Any]:
    """That of Ray Train's controller and of the actors that it makes, which run `prepare_control` first. By this
    process's variables, `settings` among them."""
    from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
    from ray.train.v2._internal.constants import (
        DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        get_env_vars_to_propagate,
    )

    train = {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE}
    return {"env_vars": train | get_env_vars_to_propagate() | _hooked("prepare_control")}


def _hooked(name: str) -> dict[str, str]:
    hook = _hook()
    job_hook = _own().get("env_vars", {}).get(hook)
    # Of one actor Ray takes a hook by its variable alone, in place of the job's.
    return {hook: f"{__name__}.{name}"} | ({_JOB_HOOK: job_hook} if job_hook else {})


def prepare() -> None:
    """In a process that is to be a rank: the job's own hook, then the imports. No GPU is looked at: Ray says which are
    the rank's when it becomes one. DeepSpeed looks when it is imported."""
    _run_job_hook()
    with contextlib.suppress(Exception):  # what cannot be imported is told where it is used
        for name in _MODULES:
            importlib.import_module(name)
        if os.environ.get(_GPUS) == "0":
            from omniloom.infra.training.accelerated import import_deepspeed

            import_deepspeed()


def prepare_control() -> None:
    """The same in a process that is to be one of Ray Train's own actors."""
    _run_job_hook()
    with contextlib.suppress(Exception):
        for name in _CONTROL_MODULES:
            importlib.import_module(name)


def _run_job_hook() -> None:
    from ray._private.runtime_env.setup_hook import load_and_execute_setup_hook

    if (job_hook := os.environ.get(_JOB_HOOK)) and (error := load_and_execute_setup_hook(job_hook)):
        raise RuntimeError(error)


def start(workers: WorkersConfig) -> int:
    """Ask the nodes that have room for ranks to start their processes, and this node for those of Ray Train's actors;
    gives how many ranks were asked for. To be called in a task or driver of the job that the ranks will belong to."""
    import ray

    ranks, left, here = _told(_of_ranks(workers)), workers.most, ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        if node["NodeID"] == here:
            _ask(node, _told(_of_control(workers)), _CONTROL_ACTORS + (not _has_coordinator()))
        count = min(left, _room(node["Resources"], workers))
        if count and _ask(node, ranks, count):
            left -= count
    return workers.most - left


def _has_coordinator() -> bool:
    import ray

    try:
        ray.get_actor(_COORDINATOR, namespace=_COORDINATOR)
    except ValueError:
        return False
    return True


def _ask(node: dict[str, Any], environment: Any, count: int) -> bool:
    """Whether a node was asked for so many processes."""
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

    messages: Any = node_manager_pb2  # protobuf makes its names at import
    request = messages.PrestartWorkersRequest(
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        runtime_env_info=environment,
        keep_alive_duration_secs=KEPT_SECONDS,
        num_workers=count,
    )
    channel = init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}")
    with contextlib.suppress(Exception):  # a node that dies, or a Ray that knows no such question
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_ASKED_SECONDS)
        return True
    return False


def _room(resources: dict[str, float], workers: WorkersConfig) -> int:
    rooms = [resources.get("CPU", 0.0) / workers.cpus]
    if workers.gpus:
        rooms.append(resources.get("GPU", 0.0) / workers.gpus)
    return int(min(rooms))


def _of_ranks(workers: WorkersConfig) -> dict[str, Any]:
    """The whole runtime environment of ranks, as Ray puts it together: the job's, that of Ray Train's controller, and
    their own."""
    control = _of_control(workers)
    return control | {"env_vars": control["env_vars"] | environment(workers)["env_vars"]}


def _of_control(workers: WorkersConfig) -> dict[str, Any]:
    """The whole one of Ray Train's controller, whose actors inherit it."""
    own = _own()
    return own | {"env_vars": own.get("env_vars", {}) | control_environment()["env_vars"] | settings(workers)}


def _told(environment: dict[str, Any]) -> Any:
    """A runtime environment as Ray's nodes are told one. They compare its text, which for an actor's they write without
    spaces."""
    from ray._private.utils import get_runtime_env_info
    from ray.runtime_env import RuntimeEnv

    info = get_runtime_env_info(RuntimeEnv(**environment))
    fields = json.loads(info.serialized_runtime_env)
    info.serialized_runtime_env = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return info


def _own() -> dict[str, Any]:
    import ray

    return dict(ray.get_runtime_context().runtime_env)


def _hook() -> str:
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    return WORKER_PROCESS_SETUP_HOOK_ENV_VAR
