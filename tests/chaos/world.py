"""World: all that pipelines meet in an hour of chaos: three Ray nodes, an MLflow server, an S3 server behind a proxy,
small disks, clocks. It is started once; a round finds it whole and leaves it as it likes.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import disturbed
import faults as kinds
from nodes import Nodes
from schedule import Round
from server import Server

_CLOCKS = ("driver", "nodes")


class World:
    """Use as a context manager."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.clocks: dict[str, float] = {}  # hours that each is ahead
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> World:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._stack.close()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for whose in _CLOCKS:
            self.set_clock(whose, 0)
        keys, self.proxy = self._stack.enter_context(disturbed.s3())
        env = {
            **keys,
            "LD_PRELOAD": str(clock_library(self.folder)),
            "CHAOS_CLOCK": str(self.folder / "clock-nodes"),
            "OMNILOOM_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self.server = self._stack.enter_context(Server(self.folder))
        self.nodes = self._stack.enter_context(Nodes(self.folder / "nodes", env))

    @contextlib.contextmanager
    def scene(self, round_: Round, folder: Path) -> Iterator[kinds.Scene]:
        """What a round's faults find; when it ends, what they broke is mended."""
        with disturbed.place(round_.place, folder) as root:
            scene = kinds.Scene(self, root, random.Random(f"{round_.number}"))
            try:
                yield scene
            finally:
                scene.end()
                self.nodes.wait_for_all()

    def set_clock(self, whose: str, hours: float) -> None:
        self.clocks[whose] = hours
        # In place: processes have the file mapped, and one that were empty for a moment would end them.
        file = os.open(self.folder / f"clock-{whose}", os.O_WRONLY | os.O_CREAT)
        os.write(file, struct.pack("d", 3600.0 * hours))
        os.close(file)

    def driver_env(self) -> dict[str, str]:
        return {**self.nodes.env, "CHAOS_CLOCK": str(self.folder / "clock-driver")}

    def overrides(self, root: str) -> list[str]:
        return [f"storage={root}", f"cluster.address={self.nodes.address}", f"tracking.uri={self.server.uri}"]


def clock_library(folder: Path) -> Path:
    library = folder / "clock.so"
    if not library.exists():
        unfinished = folder / f"clock-{os.getpid()}.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(unfinished), str(source)], check=True)
        unfinished.rename(library)
    return library
