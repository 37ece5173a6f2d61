"""A real Ray cluster of several nodes on 127.0.0.1 for a test: own ports, own temporary folder, own token.

`with start_cluster(nodes=2) as cluster:` gives its addresses and the environment that its clients need; at the end
every process that it started is gone, told apart by process ids, and no other Ray of the machine is touched.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class TestCluster:
    """`dashboard` is for jobs, `gcs` for drivers; `env` is the whole environment of a client with the token."""

    __test__ = False

    dashboard: str
    gcs: str
    env: dict[str, str]
    log_folder: Path
    pids: tuple[int, ...]


@contextmanager
def start_cluster(
    log_folder: Path,
    nodes: int = 2,
    num_cpus: int = 1,
    timeout: float = 90.0,
    env: dict[str, str] | None = None,
    python: Path = Path(sys.executable),
    sizes: Sequence[Sequence[str]] = (),
) -> Iterator[TestCluster]:
    """Start `nodes` Ray nodes with `num_cpus` each, run by `python`; their output goes to `log_folder/node-N.log`.
    `sizes` are in place of these two each node's own options of `ray start`."""
    sizes = sizes or [[f"--num-cpus={num_cpus}"]] * nodes
    gcs, dashboard = free_port(), free_port()
    token = secrets.token_hex(32)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        **(env or {}),
    }
    for name in ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        environment.pop(name, None)
    shared = [
        "--block",
        "--disable-usage-stats",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--object-store-memory=200000000",
        "--node-ip-address=127.0.0.1",
    ]
    log_folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # pytest's folders are too long for Ray's sockets
        temp = tempfile.mkdtemp(prefix="ol-ray-", dir="/tmp")
        stack.callback(shutil.rmtree, temp, ignore_errors=True)
        processes: list[subprocess.Popen] = []
        stack.callback(_end, processes)

        def launch(*arguments: str) -> None:
            log = stack.enter_context(open(log_folder / f"node-{len(processes)}.log", "wb"))
            processes.append(
                subprocess.Popen(
                    [str(python), "-m", "ray.scripts.scripts", "start", *arguments, *sizes[len(processes)], *shared],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )

        launch(
            "--head",
            f"--port={gcs}",
            f"--dashboard-port={dashboard}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--temp-dir={temp}",
        )
        url = f"http://127.0.0.1:{dashboard}"
        _wait_for(lambda: _alive(url, token) >= 1, timeout, processes, log_folder)
        for _ in sizes[1:]:
            launch(f"--address=127.0.0.1:{gcs}", f"--dashboard-agent-listen-port={free_port()}")
        _wait_for(lambda: _alive(url, token) >= len(sizes), timeout, processes, log_folder)
        yield TestCluster(url, f"127.0.0.1:{gcs}", environment, log_folder, tuple(p.pid for p in processes))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _alive(url: str, token: str) -> int:
    """How many nodes the dashboard counts as alive."""
    import json

    request = urllib.request.Request(f"{url}/nodes?view=summary", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            summary = json.load(answer)["data"]["summary"]
    except (urllib.error.URLError, OSError, KeyError, ValueError):
        return 0
    return sum(node.get("raylet", {}).get("state") == "ALIVE" for node in summary)


def _wait_for(ready, timeout: float, processes: list[subprocess.Popen], log_folder: Path) -> None:
    deadline = time.monotonic() + timeout
    while not ready():
        failed = [number for number, process in enumerate(processes) if process.poll() is not None]
        if failed or time.monotonic() > deadline:
            number = failed[0] if failed else len(processes) - 1
            raise RuntimeError(
                f"Ray node {number} did not start:\n"
                + (log_folder / f"node-{number}.log").read_text(errors="replace")[-3000:]
            )
        time.sleep(0.3)


def _end(processes: list[subprocess.Popen]) -> None:
    """End the nodes and all that they started, workers included."""
    family: dict[int, psutil.Process] = {}
    for process in processes:
        try:
            parent = psutil.Process(process.pid)
            family |= {member.pid: member for member in [parent, *parent.children(recursive=True)]}
        except psutil.NoSuchProcess:
            continue
    for process in reversed(processes):
        process.terminate()
    psutil.wait_procs(list(family.values()), timeout=5)
    for member in family.values():
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    for process in processes:
        process.wait(10)
