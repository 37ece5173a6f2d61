"""Hangs: what every rank was doing when a step did not end, from the ranks to whoever reads the run's log.

    STATE/hangs/rank-00003.json     {"rank", "ranks", "step", "seconds", "limit", "place", "stacks"}, of the present
                                    attempt

A rank writes its own; where its process cannot (stopped, or in native code), another rank of its machine asks py-spy.
The folder is the channel: the storage is what ranks and the stage's body share, whatever the network does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib import metadata

from omniloom.infra import owner, storage
from omniloom.infra.training.watch import stacks

EXIT = 78  # a rank's exit code after a hang
_WAIT_SECONDS = 10.0  # for the other ranks' stacks
_SPY_SECONDS = 20.0
_WRITE_SECONDS = 30.0  # a storage that does not answer must not keep a hung rank alive


def clear(state: str) -> None:
    """Forget an earlier attempt's."""
    storage.remove(_folder(state))


def end_rank(
    state: str, step: int, rank: int, processes: Sequence[str], thread: int, seconds: float, limit: float
) -> None:
    """Write what this rank is doing, and what those do that cannot say so, and end the process. `processes` are the
    ranks' names as `infra.owner` gives them; `thread` is the one that trains."""
    text, place = stacks(thread)
    print(
        f"step {step} of rank {rank} lasts {seconds:.0f} s (limit {limit:.0f} s):\n{text}", file=sys.stderr, flush=True
    )
    fact = {"step": step, "ranks": len(processes), "seconds": round(seconds, 1), "limit": round(limit, 1)}

    def write() -> None:
        _write(state, {**fact, "rank": rank, "place": place, "stacks": text})
        _ask_for_others(state, rank, processes, fact)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(_WRITE_SECONDS)
    os._exit(EXIT)


def _folder(state: str) -> str:
    return storage.join(state, "hangs")


def _write(state: str, report: dict) -> None:
    storage.write_json(storage.join(_folder(state), f"rank-{report['rank']:05d}.json"), report)


def _written(state: str) -> set[int]:
    return {int(name[5:10]) for name in storage.list_files(_folder(state))}


def _ask_for_others(state: str, rank: int, processes: Sequence[str], fact: dict) -> None:
    """Wait for the other ranks' stacks, but for those that are known to be stopped; of those of this machine that are
    still missing the lowest rank here that could write asks py-spy, and ends them: the group waits for their end."""
    every, deadline = set(range(len(processes))), time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        written = _written(state)
        if all(owner.is_stopped(processes[other]) for other in every - written):
            break
        time.sleep(0.5)
    here = {other for other in every if owner.same_kernel(processes[other], processes[rank])}
    if rank != min(written & here, default=rank):
        return
    for other in sorted((every - written) & here):
        text = spy(owner.pid(processes[other]))
        _write(state, {**fact, "rank": other, "place": "does not answer, asked from outside", "stacks": text})
        owner.kill(processes[other])


def spy(pid: int) -> str:
    """The Python stacks of another process of this machine by py-spy, which Ray installs; or why there are none. It
    reads the memory without stopping the process, as one that is stopped already cannot be stopped."""
    try:
        program = next(str(file.locate()) for file in metadata.files("py-spy") or () if file.name == "py-spy")
        found = subprocess.run(
            [program, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True, timeout=_SPY_SECONDS
        )
    except (StopIteration, metadata.PackageNotFoundError, OSError, subprocess.SubprocessError) as error:
        return f"no stack: {type(error).__name__}: {error}\n"
    return found.stdout if found.returncode == 0 else f"no stack: {found.stderr.strip()[:500]}\n"


def read(state: str) -> tuple[str, str, int] | None:
    """(one line about a hang of the last attempt, all ranks' stacks, the step); None where nothing hung."""
    reports = []
    for name in storage.list_files(_folder(state)):
        with contextlib.suppress(Exception):  # a rank that was ended while it wrote has no stack
            reports.append(storage.read_json(storage.join(_folder(state), name)) or {})
    if not reports:
        return None
    first, places = reports[0], defaultdict(list)
    for report in reports:
        places[report["place"]].append(report["rank"])
    if missing := sorted(set(range(first["ranks"])) - {report["rank"] for report in reports}):
        places["no stack: the process or its machine is stopped or gone"] = missing
    # One that hangs stands elsewhere than those that wait for it.
    told = [f"{_named(there)} at {place}" for place, there in sorted(places.items(), key=lambda item: len(item[1]))]
    text = "\n".join(f"=== rank {report['rank']}: {report['place']}\n{report['stacks']}" for report in reports)
    line = f"step {first['step']} hung: it lasted over {first['seconds']:.0f} s, and by the steps before at most "
    return f"{line}{first['limit']:.0f} s; {'; '.join(told)}", text, first["step"]


def _named(ranks: list[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
