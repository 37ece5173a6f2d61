"""Waiting for Ray with a patience that no clock moves.

The timeouts of `ray.get` and `ray.wait` go by the wall clock of this process: where that is set back while one waits,
the wait is longer by as much. Python's own go by the monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import wait
from typing import Any


def settled(references: Sequence[Any], seconds: float) -> tuple[list[Any], list[Any]]:
    """(those that have a result or an error, those that have none) of Ray's references, when all have or after so many
    seconds."""
    futures = [reference.future() for reference in references]
    done = wait(futures, timeout=seconds).done
    have = [future in done for future in futures]
    return (
        [reference for reference, ended in zip(references, have, strict=True) if ended],
        [reference for reference, ended in zip(references, have, strict=True) if not ended],
    )


def answer(reference: Any, seconds: float) -> Any:
    """What a reference gives; raises its error, and TimeoutError after so many seconds."""
    return reference.future().result(timeout=seconds)
