"""Ready: processes that have imported what every rank needs, before Ray Train asks for the ranks; and one for the
stage's body, which looks after them.

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

KEPT_SECONDS = 120  # for how long Ray keeps a process that no rank came for
# Ray Train's own patience with a process that answers nothing at all, which no thread of its own can notice.
_SILENCE = "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"
_POLL = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"  # half of it passes between the last rank's end and the group's
_POLLED_RANKS = 64  # a second
_ASKED_SECONDS = 5.0
_MODULES = ("torch.distributed", "ray.train.torch", "omniloom.infra.training.group", "omniloom.infra.training.loop")
_BODY_MODULES = ("omniloom.infra.training.control", "omniloom.infra.training.group")
_COORDINATOR = "AutoscalingCoordinator"  # its name and namespace; one more, which the first training of a Ray starts
_GPUS = "OMNILOOM_RANK_GPUS"
_JOB_HOOK = "OMNILOOM_JOB_HOOK"


def settings(workers: WorkersConfig) -> dict[str, str]:
    """The variables by which Ray Train is told how it watches its ranks."""
    return {_SILENCE: f"{2 * workers.hang_seconds:g}", _POLL: f"{min(2.0, max(0.5, workers.most / _POLLED_RANKS)):g}"}


def environment(workers: WorkersConfig) -> dict[str, Any]:
    """The runtime environment of ranks, on top of this process's own: their processes run `prepare` first."""
    return {"env_vars": _hooked("prepare") | {_GPUS: f"{workers.gpus:g}"}}


def body_environment() -> dict[str, Any]:
    """That of a training's body, whose process runs `prepare_body` first."""
    return {"env_vars": _hooked("prepare_body")}


def _hooked(name: str) -> dict[str, str]:
    """A process has one hook, by its variable: ours stands in the place of the job's, and calls it."""
    hook, own = _hook(), _own().get("env_vars", {})
    job_hook = own.get(_JOB_HOOK) or own.get(hook, "")
    kept = {_JOB_HOOK: job_hook} if job_hook and not job_hook.startswith(__name__) else {}
    return {hook: f"{__name__}.{name}"} | kept


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


def prepare_body() -> None:
    """The same in a process that is to be a training's body, or what it tells its needs to."""
    _run_job_hook()
    with contextlib.suppress(Exception):
        for name in _BODY_MODULES:
            importlib.import_module(name)


def _run_job_hook() -> None:
    from ray._private.runtime_env.setup_hook import load_and_execute_setup_hook

    if (job_hook := os.environ.get(_JOB_HOOK)) and (error := load_and_execute_setup_hook(job_hook)):
        raise RuntimeError(error)


def start(workers: WorkersConfig, body: bool = True) -> int:
    """Ask the nodes that have room for ranks to start their processes, and with `body` this node for that of the body;
    gives how many ranks were asked for. To be called in the driver of the job that the ranks will belong to."""
    import ray

    own, of_body, here = _own(), _of_body(), ray.get_runtime_context().get_node_id()
    ranks, left = _told(_of_ranks(workers), of_body), workers.most
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        if body and node["NodeID"] == here:
            _ask(node, _told(of_body, own), 1 + (not _has_coordinator()))
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
    """The whole runtime environment of ranks, as Ray puts it together: the job's, the body's, and theirs."""
    body = _of_body()
    return body | {"env_vars": body["env_vars"] | environment(workers)["env_vars"]}


def _of_body() -> dict[str, Any]:
    own = _own()
    return own | {"env_vars": own.get("env_vars", {}) | body_environment()["env_vars"]}


def _told(environment: dict[str, Any], on_top_of: dict[str, Any]) -> Any:
    """A runtime environment as Ray's nodes are told one. They compare its text, which where it was put together, on top
    of another one, they write without spaces."""
    from ray._private.utils import get_runtime_env_info
    from ray.runtime_env import RuntimeEnv

    info = get_runtime_env_info(RuntimeEnv(**environment))
    if on_top_of:
        fields = json.loads(info.serialized_runtime_env)
        info.serialized_runtime_env = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return info


def _own() -> dict[str, Any]:
    import ray

    return dict(ray.get_runtime_context().runtime_env)


def _hook() -> str:
    from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR

    return WORKER_PROCESS_SETUP_HOOK_ENV_VAR
