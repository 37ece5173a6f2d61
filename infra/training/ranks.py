"""A function on several ranks of this machine, without Ray: processes that join by gloo on 127.0.0.1."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from omniloom.infra.training.launch import free_port


def run_on_ranks(function: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Returns when all have ended; raises what one of them raised, in words."""
    import torch

    torch.multiprocessing.spawn(_rank, (function, ranks, free_port(), arguments), nprocs=ranks)


def _rank(rank: int, function: Callable[..., None], ranks: int, port: int, arguments: tuple) -> None:
    import torch
    import torch.distributed as dist

    settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in settings.items()}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()
