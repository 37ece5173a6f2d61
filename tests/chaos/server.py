"""An MLflow server on 127.0.0.1 that can be killed, stopped, and started again on the same store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
from cluster_fixture import free_port

_START_SECONDS = 60.0


class Server:
    """Use as a context manager."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        self.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"MLflow did not start; see {self.folder}")
            time.sleep(0.3)
        return self

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
            return True
        except OSError:
            return False

    def __exit__(self, *exception) -> None:
        self.kill()

    def start(self) -> None:
        if self._process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={self.port}", "--workers=1"]
        store = [f"--backend-store-uri=sqlite:///{self.folder / 'mlflow.db'}", f"--artifacts-destination={self.folder}"]
        with open(self.folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, *store],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            parent = psutil.Process(self._process.pid)
            for member in [parent, *parent.children(recursive=True)]:
                member.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
