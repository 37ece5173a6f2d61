"""Ray nodes on 127.0.0.1 that can be taken away and replaced: a head, which drivers attach to, and others.

Every process that a node starts is known by its parent, so that one node's can be found and ended, and no other Ray
of the machine is touched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from cluster_fixture import free_port

CPUS = (1, 2, 2)  # of the head and the others: two ranks find room when one of the others is away
_START_SECONDS = 90.0


class Nodes:
    """Use as a context manager. `address` is the GCS's, `env` a client's whole environment. What `env` of the
    constructor holds is for the nodes, and for all that runs on them."""

    def __init__(self, folder: Path, env: dict[str, str]):
        self.folder, self.port = folder, free_port()
        self.address = f"127.0.0.1:{self.port}"
        # pytest's and other deep folders are too long for Ray's sockets
        self.temp = tempfile.mkdtemp(prefix="chaos-", dir="/tmp")
        self.env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
            **env,
        }
        for name in ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
            self.env.pop(name, None)
        self.processes: dict[int, subprocess.Popen] = {}
        self._family: dict[int, psutil.Process] = {}
        self.logs: dict[int, Path] = {}
        self.labels: dict[int, str] = {}  # by which Ray knows a node of ours
        self._starts = 0

    def __enter__(self) -> Nodes:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.start(0)
            self.wait_for_head()
            for number in range(1, len(CPUS)):
                self.start(number)
                self.wait_for_all()  # one after the other: two that start at once on one machine can miss each other
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        for number in reversed(list(self.processes)):
            self.kill(number)
        for process in self._family.values():  # what outlived its node
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.temp, ignore_errors=True)

    def wait_for_head(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens():
            if time.monotonic() > deadline or self.processes[0].poll() is not None:
                raise RuntimeError(f"the head did not start; see {self.folder}")
            time.sleep(0.2)

    def wait_for_all(self) -> None:
        """Every node has joined."""
        deadline = time.monotonic() + _START_SECONDS
        while not all(map(self._told, self.logs)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"a node did not start; see {self.folder}")
            self.mend()
            time.sleep(0.2)

    def mend(self) -> None:
        """Start again what gave up while it started, as Ray does on a machine that is busy."""
        for number, process in list(self.processes.items()):
            if process.poll() is not None:
                self.start(number)

    def start(self, number: int) -> None:
        """Start a node, or its replacement, without waiting for it."""
        where = (
            ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.temp}"]
            if number == 0
            else [f"--address={self.address}"]
        )
        self._starts += 1
        self.labels[number] = f"{number}-{self._starts}"
        self.logs[number] = self.folder / f"node-{number}-{self._starts}.log"
        with open(self.logs[number], "wb") as log:
            self.processes[number] = subprocess.Popen(
                [
                    sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--block", "--disable-usage-stats",
                    f"--num-cpus={CPUS[number]}", f"--labels=chaos={self.labels[number]}",
                    "--min-worker-port=0", "--max-worker-port=0",
                    "--object-store-memory=100000000", "--node-ip-address=127.0.0.1",
                    f"--dashboard-agent-listen-port={free_port()}",
                ],
                env=self.env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def kill(self, number: int) -> None:
        """All of a node's processes at once, as where its power is cut."""
        process = self.processes.pop(number)
        for member in self.family(process.pid):
            with contextlib.suppress(psutil.Error):
                member.kill()
        process.kill()
        process.wait()

    def family(self, pid: int) -> list[psutil.Process]:
        """A process and all that it started."""
        try:
            parent = psutil.Process(pid)
            found = [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
        self._family |= {member.pid: member for member in found}
        return found

    def has(self, number: int) -> bool:
        """Whether the node has joined, and is there."""
        process = self.processes.get(number)
        return process is not None and process.poll() is None and self._told(number)

    def _told(self, number: int) -> bool:
        return "Ray runtime started" in self.logs[number].read_text(errors="replace")

    def members(self, number: int) -> list[psutil.Process]:
        """The processes of a node."""
        return self.family(self.processes[number].pid) if number in self.processes else []

    def workers(self, *words: str) -> list[tuple[int, psutil.Process]]:
        """(node, process) of Ray's workers that say in their title what they do."""
        found = []
        for number, process in list(self.processes.items()):
            for member in self.family(process.pid):
                with contextlib.suppress(psutil.Error):
                    title = " ".join(member.cmdline())
                    if title.startswith("ray::") and any(word in title for word in words):
                        found.append((number, member))
        return sorted(found, key=lambda pair: pair[1].pid)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False
