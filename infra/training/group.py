"""Group: the ranks of Ray Train, and how they hear that their training is to end: from a signal, the driver, or a node
that is drained. It is told to `stopping`, whose agreement ends all of them after one step.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from ray.train.torch.config import TorchConfig, _TorchBackend
from ray.train.v2._internal.execution.context import get_train_context

from omniloom.infra.training import stopping

_INTERVAL = 1.0  # seconds between questions


@dataclass
class GroupConfig(TorchConfig):
    """Ray Train's process group of PyTorch, whose workers take a SIGTERM for the wish to end."""

    @property
    def backend_cls(self):
        return _Backend


class _Backend(_TorchBackend):
    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(_heed_signals)  # in the workers' main threads, which alone may do it


def _heed_signals() -> None:
    def heed(number: int, frame: Any) -> None:
        if stopping.asked():
            raise SystemExit(1)  # as Ray's own handler: whoever says it twice means it
        stopping.ask("a signal")

    signal.signal(signal.SIGTERM, heed)


@contextlib.contextmanager
def listening(progress: Any) -> Iterator[None]:
    """In the block this rank hears of the driver's wish, which the first one asks for, and of a drained node."""
    stopping.clear()
    stop = threading.Event()

    def listen() -> None:
        while not stop.wait(_INTERVAL) and not stopping.asked():
            with contextlib.suppress(Exception):  # a board that is busy or gone ends no training
                if _drained():
                    stopping.ask(stopping.PREEMPTED)
                elif dist.get_rank() == 0 and (who := progress.is_to_stop()):
                    stopping.ask(who)

    threading.Thread(target=listen, daemon=True, name="listening").start()
    try:
        yield
    finally:
        stop.set()


def _drained() -> bool:
    """Whether a node of the group will be taken away, as Ray Train's watcher told this worker. Its public question is
    one for all ranks at once, which would cost a step."""
    return get_train_context().preemption_context.preemption_info is not None
