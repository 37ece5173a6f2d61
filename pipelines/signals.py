"""Signals: Ctrl-C, SIGTERM (`stop` of a job, a scheduler) and SIGHUP (a terminal that was closed) end a run alike."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

INTERRUPTED = 130  # a shell's code for a command that Ctrl-C ended
LINE = "interrupted; the next run goes on from here"
_ONE_REQUEST = 0.5  # seconds: `timeout` signals a command and then its whole group, the command among them
_LEAVING = 5.0  # seconds for what ends with the interpreter


def leave_soon() -> None:
    """An interrupted run has closed its records: a thread of it that still waits for an answer, as of a worker process
    that hangs, keeps the process for a few seconds at most."""

    def leave() -> None:
        time.sleep(_LEAVING)
        sys.stderr.flush()
        os._exit(INTERRUPTED)

    # When the interpreter ends, before it waits for threads and pools: who called the command from Python goes on.
    threading._register_atexit(threading.Thread(target=leave, daemon=True).start)  # type: ignore[attr-defined]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In the block the first of these signals raises KeyboardInterrupt in the main thread, by which a run closes its
    records; a second one, later than `_ONE_REQUEST` behind it, ends the process at once, after `LINE`. One that is
    ignored (nohup) stays so."""
    terminals = [number for number in (1, 2) if os.isatty(number)]
    seen: list[float] = []  # when the first came

    def interrupt(number, frame) -> None:
        _leave_closed(terminals)
        if not seen:
            seen.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - seen[0] > _ONE_REQUEST:
            os.write(2, f"{LINE}\n".encode())
            os._exit(INTERRUPTED)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_closed(terminals: list[int]) -> None:
    """Where the terminal is gone, what is printed from here on goes nowhere, in place of failing."""
    for number in terminals:
        if not os.isatty(number):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
