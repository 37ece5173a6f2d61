"""An `omniloom serve` in a process of its own, for tests and the benchmark."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Served:
    """`log` holds what it printed; `process` leads a session of its own."""

    address: str
    log: Path
    process: subprocess.Popen

    def left(self) -> list[str]:
        """Processes of its session that are still there."""
        listed = subprocess.run(["ps", "-s", str(self.process.pid), "-o", "pid=,args="], capture_output=True, text=True)
        return [line for line in listed.stdout.splitlines() if "<defunct>" not in line]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(model: str, log: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Served]:
    """It is ended by Ctrl-C, unless it has ended by itself."""
    port = free_port()
    command = [sys.executable, "-m", "omniloom.pipelines.cli", "serve", model, "--port", str(port), *options]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **(env or {})}
        )
    try:
        while "until Ctrl-C" not in log.read_text():
            if process.poll() is not None:
                raise RuntimeError(f"no server: {log.read_text()}")
            time.sleep(0.2)
        yield Served(f"http://127.0.0.1:{port}", log, process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            process.wait(60)
