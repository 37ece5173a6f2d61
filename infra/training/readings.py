"""What a step has to log, read without the step waiting for it.

On a GPU a figure is there when its work is through. Asked for at once, host and GPU take turns: so a step's figures
start their way to the host behind its work, and are read when the next step is under way.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Reading:
    """The figures of one step: `logs` are floats, and scalar tensors on one device. `late` says that `values` would
    wait for the device."""

    def __init__(self, step: int, logs: Mapping[str, float | Tensor]):
        self.step, self._floats = step, {name: v for name, v in logs.items() if not isinstance(v, Tensor)}
        tensors = {name: v.detach() for name, v in logs.items() if isinstance(v, Tensor)}
        self._order, self._names = list(logs), list(tensors)
        self._ready: torch.cuda.Event | None = None
        self._values = torch.stack([v.double() for v in tensors.values()]) if tensors else torch.empty(0)
        if self._values.is_cuda:
            on_host = torch.empty(self._values.shape, dtype=self._values.dtype, pin_memory=True)
            self._values = on_host.copy_(self._values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    @property
    def late(self) -> bool:
        return self._ready is not None

    def values(self) -> dict[str, float]:
        """The figures in the order of `logs`."""
        if self._ready:
            self._ready.synchronize()
        found = self._floats | dict(zip(self._names, self._values.tolist(), strict=True))
        return {name: found[name] for name in self._order}
