"""Spilled: arrays that are too large to be held, in files on the local disk."""

from __future__ import annotations

import math
import os
import tempfile
from typing import BinaryIO

import numpy as np

_HELD = 1 << 26  # bytes of an array that stays in memory
_PART = 1 << 22  # bytes of a column that are held before they are written
_ONCE = 1 << 30  # bytes that are asked of the system at once, at most


def scratch(shape: tuple[int, ...], dtype) -> np.ndarray:
    """An array to be filled: of more than 64 MiB in a temporary file, which is gone with it."""
    if math.prod(shape) * np.dtype(dtype).itemsize <= _HELD:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile() as file:
        file.truncate(math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(file, dtype, "r+", shape=shape)


class Column:
    """Rows of an array that are appended: many of them lie in a temporary file, which is gone with the array."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._bytes = 0  # of the parts
        self._file: BinaryIO | None = None

    def append(self, rows: np.ndarray) -> None:
        """Of one type and shape."""
        self._parts.append(rows)
        self._bytes += rows.nbytes
        if self._bytes > _PART:
            self._write()

    def array(self) -> np.ndarray:
        """All rows; there is at least one part."""
        if self._file is None:
            return np.concatenate(self._parts)
        kind, shape = self._parts[-1].dtype, self._parts[-1].shape[1:]
        self._write()
        width = kind.itemsize * math.prod(shape)
        with self._file as file:
            return np.asarray(np.memmap(file, kind, "r+", shape=(file.tell() // width, *shape)))

    def _write(self) -> None:
        self._file = self._file or tempfile.TemporaryFile()
        for part in self._parts:
            self._file.write(np.ascontiguousarray(part).data)
        self._file.flush()
        self._parts, self._bytes = [self._parts[-1][:0]], 0


class Spilled:
    """Rows of a name, uint64 (2,), and `columns` values, uint32, a segment after another: in each first the names, then
    column by column the values. Segments are read by any thread, and so are columns through all of them."""

    def __init__(self, file: BinaryIO, columns: int, starts: np.ndarray | None = None):
        """`starts`, int64 (segments + 1,): the rows of the segments that the file has."""
        self.file, self._columns = file, columns
        self.starts = [0] if starts is None else starts.tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def append(self, names: np.ndarray, values: np.ndarray) -> None:
        """A segment: uint64 (n, 2), and uint32 (columns, n)."""
        self.file.write(np.ascontiguousarray(names).data)
        self.file.write(np.ascontiguousarray(values).data)
        self.starts.append(self.starts[-1] + len(names))

    def names(self, segment: int) -> np.ndarray:
        start, stop = self.starts[segment : segment + 2]
        found = np.empty((stop - start, 2), np.uint64)
        self._read(found, start * self._width)
        return found

    def values(self, segment: int) -> np.ndarray:
        start, stop = self.starts[segment : segment + 2]
        found = np.empty((self._columns, stop - start), np.uint32)
        self._read(found, start * self._width + 16 * (stop - start))
        return found

    def __getitem__(self, column: int) -> np.ndarray:
        """uint32 (rows,): of one column all values."""
        self.file.flush()
        found = np.empty(len(self), np.uint32)
        for start, stop in zip(self.starts, self.starts[1:], strict=False):
            self._read(found[start:stop], start * self._width + (16 + 4 * column) * (stop - start))
        return found

    @property
    def _width(self) -> int:
        return 16 + 4 * self._columns

    def _read(self, into: np.ndarray, at: int) -> None:
        left = into.reshape(-1).data.cast("B")
        while len(left):
            got = os.preadv(self.file.fileno(), [left[:_ONCE]], at)
            if not got:
                raise EOFError(f"a file of {self.starts[-1]} rows ends early")
            left, at = left[got:], at + got
