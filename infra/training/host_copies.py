"""Room in host memory for what a checkpoint copies from a GPU: page-locked, so that the copy runs at the bus's speed;
made in the background, as locking pages takes seconds for what is copied in tenths of one.

Shards lie one after the other in slabs that are locked each as a whole. PyTorch's own page-locked tensors are as large
as the next power of two, and are made where they are asked for: for a billion parameters 14 s in front of the first
checkpoint, on an H200 machine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

SLAB = 1 << 30  # bytes that are locked together: no call to the driver takes long
_ALIGN = 256  # bytes

Key = tuple[str, str]  # an engine and one of its shards


class HostCopies:
    """Room for tensors like these. `lock` tells the driver of a slab, `unlock` that it is given up."""

    def __init__(self, tensors: Mapping[Key, Tensor], lock: Any = None, unlock: Any = None):
        self._lock, self._unlock = lock or _lock, unlock or _unlock
        self._wanted = {key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}
        self._slabs: list[Tensor] = []
        self._copies: dict[Key, Tensor] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make, name="host copies", daemon=True)
        self._thread.start()

    def __getitem__(self, key: Key) -> Tensor:
        self._thread.join()
        if self._error:
            raise self._error
        return self._copies[key]

    def fits(self, tensors: Mapping[Key, Tensor]) -> bool:
        """Whether there is room for each of these."""
        return all(self._wanted.get(key) == (tuple(t.shape), t.dtype) for key, t in tensors.items())

    def close(self) -> None:
        """Give the pages back to the system's paging; copies that are still read stay what they are."""
        self._thread.join()
        for slab in self._slabs:
            self._unlock(slab)
        self._slabs.clear()

    def _make(self) -> None:
        try:
            self._fill()
        except BaseException as error:  # told to who asks for a copy
            self._error = error

    def _fill(self) -> None:
        for places, size in slabs({key: _bytes(*wanted) for key, wanted in self._wanted.items()}):
            slab = torch.zeros(size, dtype=torch.uint8)  # touched here, by all cores, before they are locked by one
            self._lock(slab)
            self._slabs.append(slab)
            for key, start in places:
                shape, dtype = self._wanted[key]
                self._copies[key] = slab[start : start + _bytes(shape, dtype)].view(dtype).view(shape)


def slabs(sizes: Mapping[Key, int], most: int = SLAB) -> Iterable[tuple[list[tuple[Key, int]], int]]:
    """Cut tensors of so many bytes into slabs of `most` bytes at most, but for a tensor that is larger: of each slab in
    order ([(key, first byte)], bytes)."""
    places: list[tuple[Key, int]] = []
    end = 0
    for key, size in sizes.items():
        start = -(-end // _ALIGN) * _ALIGN
        if places and start + size > most:
            yield places, end
            places, start = [], 0
        places.append((key, start))
        end = start + size
    if places:
        yield places, end


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


def _lock(slab: Tensor) -> None:
    """What the driver refuses stays pageable: copies to it are right, and slower."""
    runtime = torch.cuda.cudart()
    runtime.cudaHostRegister(slab.data_ptr(), slab.numel(), 0)


def _unlock(slab: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(slab.data_ptr())
