"""Agreement: ranks that are asked to end, at different moments, end after the same step."""

from __future__ import annotations

import torch
import torch.distributed as dist

from omniloom.infra.training import stopping


class Agreement:
    """Ranks decide alike and wait for nobody: a step's answers are gathered while the next step is computed, between
    CPUs. Every rank must make one, and call `after_step` equally often."""

    def __init__(self):
        several = dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None
        self._under_way: tuple[torch.Tensor, dist.Work] | None = None

    def after_step(self) -> bool:
        """Whether some rank was asked to end before its last call; one rank alone need not wait for others."""
        if self._group is None:
            return stopping.asked() is not None
        agreed = self._finish()
        flag = torch.tensor([int(stopping.asked() is not None)])
        self._under_way = flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def _finish(self) -> bool:
        if self._under_way is None:
            return False
        flag, work = self._under_way
        work.wait()
        self._under_way = None
        return bool(flag.item())

    def close(self) -> None:
        """What is under way ends before the process group does."""
        self._finish()
