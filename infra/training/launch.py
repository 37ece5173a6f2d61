"""Launch: a worker function on every rank, by Ray Train or in this process.

The function gets one picklable argument: `state` is the URI of the folder of its checkpoints, `progress` tells that
workers start, and `tracker` is closed at its end. It finds a `torch.distributed` process group; what it makes it writes
to storage. Ray Train places the workers. Where a rank or its machine dies, or a rank hangs, the group is started again,
and the function resumes by itself.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import time
from collections.abc import Callable
from typing import Any

from omniloom.infra import storage, worker_log
from omniloom.infra.errors import OmniLoomError
from omniloom.infra.failures import is_system_failure, line, of_passing_kind, root_cause
from omniloom.infra.gpus import LABEL
from omniloom.infra.lease import Holder
from omniloom.infra.retries import Retries
from omniloom.infra.training import checkpoint, hangs, ready, stopping
from omniloom.infra.training.config import WorkersConfig

_START_SECONDS = 180.0  # from the ranks' room to the first line of their function, at least: processes that import
_WAITS_FOR_ROOM = "WorkerGroupStartupTimeoutError"


class GroupLost(OmniLoomError):
    """The ranks died too often without a later checkpoint."""


def launch(function: Callable[[Any], None], argument: Any, workers: WorkersConfig, name: str, work: str) -> None:
    """Run `function(argument)` on the ranks of a Ray Train worker group, of `workers.count`; returns when all have
    ended. Of a range as many run as there is room for: when that changes, the group starts again from the last
    checkpoint with another number.

    A group that failed by no fault of the function's is started again (`infra.retries`): progress is a later
    checkpoint. Raises `Stopped` where the driver asked it to end, `GroupLost` where it died too often, else what a rank
    raised.
    """
    retries = Retries(workers.max_failures, checkpoint.newest_step(argument.state))
    while True:
        argument.progress.say(f"starting {_number(workers)}")
        hangs.clear(argument.state)
        Holder.new_attempt(argument.state)
        try:
            _fit(function, argument, workers, name, work)
            return
        except Exception as error:
            _after(error, argument, workers, retries)


def _after(error: Exception, argument: Any, workers: WorkersConfig, retries: Retries) -> None:
    """Returns where the group is to be started again, after a pause; raises where not."""
    note, root = argument.progress.note, root_cause(error)
    reached = checkpoint.newest_step(argument.state)
    goes_on = f"training goes on from step {reached}"
    if isinstance(root, stopping.Stopped):
        note(str(root))
        if argument.progress.is_to_stop():
            raise root
        return
    if type(root).__name__ == _WAITS_FOR_ROOM:
        room = f"{workers.cpus:g} CPUs" + (f" and {workers.gpus:g} GPUs" if workers.gpus else "")
        argument.progress.say(f"waiting for room for {_number(workers)} of {room}")
        return
    hang = hangs.read(argument.state)
    if not (hang or is_system_failure(root) or of_passing_kind(root)):
        raise error
    what = hang[0] if hang else line(root)
    if hang:
        argument.tracker.log_text(hang[1], f"hangs/step-{hang[2]}.txt")
    if (pause := retries.failed(reached)) is None:
        raise GroupLost(
            f"the training died {retries.often} without a later checkpoint than that of step {reached}, which is kept; "
            f"the last time: {what}; the next run goes on from there"
        ) from error
    note(f"{what}; {goes_on} ({retries.told})")
    time.sleep(pause)


def _number(workers: WorkersConfig) -> str:
    count = workers.count if workers.least == workers.most else f"{workers.least} to {workers.most}"
    return f"{count} worker{'s' if workers.most > 1 else ''}"


def _fit(function: Callable[[Any], None], argument: Any, workers: WorkersConfig, name: str, work: str) -> None:
    import pyarrow.fs
    from ray.train import ScalingConfig
    from ray.train.v2.api.config import FailureConfig, RunConfig

    from omniloom.infra.training.control import Trainer
    from omniloom.infra.training.group import GroupConfig

    os.environ |= ready.settings(workers)
    count = workers.count
    number: Any = count if isinstance(count, int) else (count.min, count.max)
    fs, path = storage.filesystem(storage.join(work, "state", "ray_train"))
    fs.makedirs(path, exist_ok=True)
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    if workers.accelerator_type:
        resources[f"{LABEL}{workers.accelerator_type}"] = 0.001  # as Ray asks for a node of the kind, and takes none
    # Ray Train's own annotations name the RunConfig of the version before.
    run: Any = RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
        # `launch` counts failures itself: those in a row, and not those of the function's own code.
        failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        worker_runtime_env=ready.environment(workers),
    )
    Trainer(
        _enter,
        train_loop_config={
            "function": function,
            "argument": argument,
            "threads": int(workers.cpus) or 1,
            "logs": worker_log.folder(),
        },
        scaling_config=ScalingConfig(num_workers=number, use_gpu=workers.gpus > 0, resources_per_worker=resources),
        torch_config=GroupConfig(backend="nccl" if workers.gpus else "gloo"),
        run_config=run,
        start_seconds=max(_START_SECONDS, workers.hang_seconds),
    ).fit()


def _enter(config: dict) -> None:
    import torch
    import torch.distributed as dist

    from omniloom.infra.training import group

    torch.set_num_threads(config["threads"])
    try:
        log = worker_log.kept(config["logs"], f"rank-{dist.get_rank()}")
        with log, group.listening(config["argument"].progress):
            worker_log.write(f"rank {dist.get_rank()} of {dist.get_world_size()}, {dist.get_backend()}")
            config["function"](config["argument"])
    except Exception as error:
        if (portable := _portable(error)) is error:
            raise
        raise portable from None  # the driver could not read what it would carry along
    finally:
        # Ray kills the worker when its function has ended: what it has logged must be delivered before.
        config["argument"].tracker.close()


def _portable(error: Exception) -> Exception:
    """The exception, or one of the same words where another process could not read it: not all can be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def single_process():
    """A process group of one rank in this process, where none exists: for tests and for debugging a stage."""
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    port = free_port()
    settings = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    backend, on = ("nccl", torch.device("cuda", 0)) if torch.cuda.is_available() else ("gloo", None)
    dist.init_process_group(backend, rank=0, world_size=1, device_id=on)
    try:
        yield
    finally:
        dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
