"""Stopping: a training that is asked to end writes a checkpoint first, after a step that all its ranks agree on.

Whoever hears of it (a signal, the driver, a node that will be taken away) calls `ask` in the rank's process. The loop
gives `agreement.Agreement` what its process knows after each step, and is told a step later what any of them knew.
"""

from __future__ import annotations

import threading

from omniloom.infra.errors import OmniLoomError

PREEMPTED = "a node of it will be taken away"
_asked = threading.Event()
_reason = ""


class Stopped(OmniLoomError):
    """A training that was asked to end has written its checkpoint; the message says after which step, and why."""


def ask(reason: str) -> None:
    global _reason
    _reason = _reason or reason
    _asked.set()


def asked() -> str | None:
    """Why this process was asked to end its training; None where it was not."""
    return _reason if _asked.is_set() else None


def clear() -> None:
    """A new training begins in this process."""
    global _reason
    _reason = ""
    _asked.clear()
