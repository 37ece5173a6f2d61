"""Owner: the name of one process that no other can be taken for, and whether that process lives.

`HOST:PID:START:BOOT:NAMESPACE`. A process id says something only within one boot of one kernel and one pid namespace
(machines and containers share host names), and only together with the process's start time (ids are used again).
START is in clock ticks since the boot. Without Linux's /proc the last three are empty, and nobody can be asked.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

_ENDED = ("Z", "X", "x")  # a zombie holds nothing: where nobody waits for it (pid 1 of many containers) it stays


def this_process() -> str:
    pid = os.getpid()
    start = (_state_and_start(pid) or ("", ""))[1]
    return ":".join((socket.gethostname(), str(pid), start, *_kernel()))


def lives(owner: str) -> bool | None:
    """Whether the process lives; None where that cannot be known from here: another boot, namespace or system.

    Names of another form (of an earlier version) are None too.
    """
    try:
        _, pid, start, *kernel = owner.split(":")
        number = int(pid)
    except ValueError:
        return None
    if not (start and all(kernel)) or number <= 0 or tuple(kernel) != _kernel():
        return None
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    found = _state_and_start(number)
    if found is None:  # /proc may hide the processes of other users
        return None
    state, started = found
    return started == start and state not in _ENDED


def is_stopped(owner: str) -> bool:
    """Whether the process is known to be stopped (SIGSTOP): it lives, and does nothing."""
    return bool(lives(owner)) and (_state_and_start(pid(owner)) or ("", ""))[0] in ("T", "t")


def kill(owner: str) -> None:
    """End the process, whatever it does, where it is known to live."""
    if lives(owner):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            os.kill(pid(owner), signal.SIGKILL)


def pid(owner: str) -> int:
    """The process id in the name, of its own machine and namespace."""
    return int(owner.split(":")[1])


def same_kernel(one: str, other: str) -> bool:
    """Whether both processes run in one boot of one machine, and one pid namespace, as far as that is known."""
    kernel = one.split(":")[3:5]
    return all(kernel) and kernel == other.split(":")[3:5]


def shown(owner: str) -> str:
    """The part of an owner's name that a person looks for."""
    host, _, rest = owner.partition(":")
    return f"{host}, process {rest.partition(':')[0]}" if rest else owner


def _kernel() -> tuple[str, ...]:
    """(boot id, pid namespace); empty where there is no /proc, or one of another pid namespace."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return "", ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid").removeprefix("pid:").strip("[]")
    except OSError:
        return "", ""


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """(state, start in ticks since the boot) of a process, from /proc/PID/stat; None where that cannot be read."""
    try:
        # The name of the program stands in brackets and may hold spaces and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None
