"""Long lists in little memory."""

from __future__ import annotations

import marshal
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class Packed(Sequence):
    """A list that is appended to and read from front to back: blocks of `together` rows, each compressed, some 20 bytes
    for what takes a kilobyte as objects. A row is of what `marshal` holds: tuples, lists, dictionaries, texts, numbers.
    """

    def __init__(self, rows: Iterable[Any] = (), together: int = 4096):
        self._together, self._count = together, 0
        self._blocks: list[bytes] = []
        self._last: list = []
        for row in rows:
            self.append(row)

    def append(self, row: Any) -> None:
        self._last.append(row)
        self._count += 1
        if len(self._last) == self._together:
            self._blocks.append(zlib.compress(marshal.dumps(self._last), 1))
            self._last = []

    def __iter__(self) -> Iterator:
        for block in self._blocks:
            yield from marshal.loads(zlib.decompress(block))
        yield from self._last

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return list(self)[index]
        at = range(self._count)[index]  # IndexError, and places from the end
        number, place = divmod(at, self._together)
        rows = marshal.loads(zlib.decompress(self._blocks[number])) if number < len(self._blocks) else self._last
        return rows[place]
