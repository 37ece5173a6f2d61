"""Work on arrays by as many threads as there are CPUs: sorting, hashing and reading Parquet run outside of Python's
lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_MOST = 8  # each holds a block of its own


def side_by_side(function: Callable[[T], R], given: Iterable[T]) -> Iterator[R]:
    """The function's results, in order. At any time one more than there are threads are made or wait to be taken."""
    threads = min(_MOST, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for one in given:
            waiting.append(pool.submit(function, one))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
