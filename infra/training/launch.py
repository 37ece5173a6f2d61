"""Launch: a worker function on every rank, by Ray Train or in this process.

The function gets one picklable argument, whose `progress` tells that workers start and whose `tracker` is closed at its
end, and finds a `torch.distributed` process group; what it makes it writes to storage. Ray Train places the workers and
restarts the group after a failure; the function resumes by itself.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

from omniloom.infra import storage
from omniloom.infra.training.config import WorkersConfig


def launch(function: Callable[[Any], None], argument: Any, workers: WorkersConfig, name: str, work: str) -> None:
    """Run `function(argument)` on the ranks of a Ray Train worker group, of `workers.count`; returns when all have
    ended. Of a range as many run as there is room for: when that changes, the group starts again from the last
    checkpoint with another number."""
    import pyarrow.fs
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    count = workers.count
    number: Any = count if isinstance(count, int) else (count.min, count.max)
    told = f"{count}" if isinstance(count, int) else f"{count.min} to {count.max}"
    argument.progress.say(f"starting {told} worker{'s' if workers.most > 1 else ''}")
    fs, path = storage.filesystem(storage.join(work, "state", "ray_train"))
    fs.makedirs(path, exist_ok=True)
    resources = {"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {})
    TorchTrainer(
        _enter,
        train_loop_config={"function": function, "argument": argument, "threads": int(workers.cpus) or 1},
        scaling_config=ScalingConfig(num_workers=number, use_gpu=workers.gpus > 0, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if workers.gpus else "gloo"),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
            failure_config=FailureConfig(max_failures=workers.max_failures),
        ),
    ).fit()


def _enter(config: dict) -> None:
    import torch

    torch.set_num_threads(config["threads"])
    try:
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


@contextlib.contextmanager
def single_process():
    """A process group of one rank in this process, where none exists: for tests and for debugging a stage."""
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    dist.init_process_group("gloo", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
