"""Faults: what is done to a running pipeline, by kind. Each finds its victims when its moment has come."""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from nodes import CPUS

from omniloom.infra import storage

if TYPE_CHECKING:
    from world import World

RANK, BODY, SHARDS = ("RayTrainWorker",), "ray::{}", ("Map", "MapWorker")
_MANIFEST = re.compile(r"/checkpoints/step-\d+\.json$")
_DRAIN = """
import sys, time
from ray._raylet import GcsClient
address, label, seconds = sys.argv[1:]
client = GcsClient(address=address)
for found in client.get_all_node_info(timeout=10).values():
    if found.state == 0 and found.labels.get("chaos") == label:
        print(client.drain_node(found.node_id.hex(), 2, "chaos", int((time.time() + float(seconds)) * 1000)))
"""


@dataclass
class Scene:
    """What a fault finds: the world, the pipeline's storage and its driver."""

    world: World
    root: str
    random: random.Random
    driver: subprocess.Popen | None = None
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)  # what ends a fault, by its moment

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        self.later.append((time.monotonic() + seconds, call))

    def settle(self) -> None:
        """Do what is due."""
        self.world.nodes.mend()
        now = time.monotonic()
        for entry in [*self.later]:
            if entry[0] <= now:
                self.later.remove(entry)
                entry[1]()

    def end(self) -> None:
        """Do what is due later, too."""
        while self.later:
            self.later.pop(0)[1]()

    def one(self, *words: str) -> tuple[int, psutil.Process] | None:
        found = [(node, worker) for node, worker in self.world.nodes.workers(*words) if not _is_stopped(worker)]
        return self.random.choice(found) if found else None


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return True


Fault = Callable[[Scene, str], str | None]  # (scene, stage) -> what was done; None where no victim was there


def _signalled(number: signal.Signals, *words: str) -> Fault:
    def fault(scene: Scene, stage: str) -> str | None:
        victim = scene.one(*(word.format(stage) for word in words))
        if victim is None:
            return None
        victim[1].send_signal(number)
        return f"{number.name} to one of them on node {victim[0]}"

    return fault


def _driver(number: signal.Signals) -> Fault:
    def fault(scene: Scene, stage: str) -> str | None:
        if scene.driver is None or scene.driver.poll() is not None:
            return None
        scene.driver.send_signal(number)
        return number.name

    return fault


def _all_ranks_stopped(scene: Scene, stage: str) -> str | None:
    ranks = [(node, rank) for node, rank in scene.world.nodes.workers(*RANK) if not _is_stopped(rank)]
    for _, rank in ranks:
        rank.send_signal(signal.SIGSTOP)
    return f"SIGSTOP to {len(ranks)} ranks" if ranks else None


def _node(scene: Scene, stage: str) -> str | None:
    busy = {node for node, _ in scene.world.nodes.workers(*RANK, BODY.format(stage)) if node}
    if not (choice := sorted(busy) or [number for number in range(1, len(CPUS)) if scene.world.nodes.has(number)]):
        return None
    number = scene.random.choice(choice)
    scene.world.nodes.kill(number)
    scene.after(2.0, lambda: number in scene.world.nodes.processes or scene.world.nodes.start(number))
    return f"node {number} gone, with all its processes; another one comes"


def _raylet(scene: Scene, stage: str) -> str | None:
    """Ray's own process of a node is killed; those that it started have to end by themselves."""
    busy = {node for node, _ in scene.world.nodes.workers(*RANK, BODY.format(stage)) if node}
    if not busy:
        return None
    number = scene.random.choice(sorted(busy))
    raylets = [member for member in scene.world.nodes.members(number) if member.name() == "raylet"]
    for raylet in raylets:
        raylet.kill()
    return f"raylet of node {number}" if raylets else None


def _head(scene: Scene, stage: str) -> str | None:
    for number in reversed(list(scene.world.nodes.processes)):
        scene.world.nodes.kill(number)
    for number in range(len(CPUS)):
        scene.world.nodes.start(number)
        if number == 0:
            scene.world.nodes.wait_for_head()
    return "all nodes gone, the head too"


def _drained(scene: Scene, stage: str) -> str | None:
    busy = [node for node, _ in scene.world.nodes.workers(*RANK) if node]
    if not busy:
        return None
    number, seconds = scene.random.choice(busy), 15
    command = [sys.executable, "-c", _DRAIN, scene.world.nodes.address, scene.world.nodes.labels[number], str(seconds)]
    done = subprocess.run(
        command, env=scene.world.nodes.env, capture_output=True, text=True, errors="replace", timeout=30
    )
    if "True" not in done.stdout:
        raise RuntimeError(f"not drained: {done.stdout} {done.stderr[-500:]}")

    label = scene.world.nodes.labels[number]

    def replace() -> None:
        if (
            scene.world.nodes.labels[number] == label and number in scene.world.nodes.processes
        ):  # else another fault was first
            scene.world.nodes.kill(number)
            scene.world.nodes.start(number)

    scene.after(seconds, replace)
    return f"node {number} drained, gone after {seconds} s"


def _damaged(how: str) -> Fault:
    """Damage to the newest checkpoint of a group that is then killed; another one lies beside it."""

    def fault(scene: Scene, stage: str) -> str | None:
        ranks = [rank for _, rank in scene.world.nodes.workers(*RANK)]
        if not ranks or len(checkpoints(scene.root, stage)) < 2:
            return None
        for rank in ranks:  # so that none writes another one meanwhile
            rank.suspend()
        newest = checkpoints(scene.root, stage)[-1]
        inside = newest.removesuffix(".json")
        file = scene.random.choice([newest, *(storage.join(inside, name) for name in storage.list_files(inside))])
        _damage(scene, file, how)
        for rank in ranks:
            rank.kill()
        return f"{file.partition('/checkpoints/')[2]} {how}, then SIGKILL to {len(ranks)} ranks"

    return fault


def _damage(scene: Scene, file: str, how: str) -> None:
    data = bytearray(storage.read_bytes(file))
    if how == "gone":
        storage.remove(file)
    elif how == "cut":
        storage.write_bytes(file, bytes(data[: len(data) // 2]))
    else:
        for _ in range(200):
            data[scene.random.randrange(len(data))] ^= 1 << scene.random.randrange(8)
        storage.write_bytes(file, bytes(data))


def _full(scene: Scene, stage: str) -> str | None:
    filler = Path(scene.root).parent / "filler"
    if filler.exists():
        return None
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        while True:
            file.write(bytes(512))
    scene.after(6.0, lambda: filler.unlink(missing_ok=True))
    return "no byte left for 6 s"


def _storage(mode: str, seconds: float) -> Fault:
    def fault(scene: Scene, stage: str) -> str | None:
        if scene.world.proxy.mode != "well":
            return None
        scene.world.proxy.mode = mode
        scene.after(seconds, lambda: setattr(scene.world.proxy, "mode", "well"))
        return f"{mode} for {seconds:g} s"

    return fault


def _tracking(how: str) -> Fault:
    def fault(scene: Scene, stage: str) -> str | None:
        server = scene.world.server
        if not server.answers():
            return None
        if how == "killed":
            server.kill()
            scene.after(4.0, server.start)
            return "killed, started again after 4 s"
        server.signal(signal.SIGSTOP)
        scene.after(8.0, lambda: server.signal(signal.SIGCONT))
        return "stopped for 8 s"

    return fault


def _clock(scene: Scene, stage: str) -> str | None:
    whose, hours = scene.random.choice(("driver", "nodes")), scene.random.choice((-26, -1, 1, 26))
    if scene.world.clocks[whose]:
        return None
    scene.world.set_clock(whose, hours)
    scene.after(10.0, lambda: scene.world.set_clock(whose, 0))
    return f"the clock of the {whose} {hours:+d} h for 10 s"


def checkpoints(root: str, stage: str) -> list[str]:
    """URIs of the manifests of a stage's checkpoints, oldest first."""
    work = storage.join(root, "work", stage)
    return [storage.join(work, name) for name in sorted(storage.list_files(work)) if _MANIFEST.search(name)]


# They end nobody's process: each comes when it is due, whatever else is under way.
QUIET = {
    *("clock set", "MLflow killed", "MLflow hangs", "disk full"),
    *("storage slow", "storage refuses", "storage breaks", "storage busy"),
}
# They work for a while: what was done in it does not say that anything has recovered.
LASTING = {"node drained", "disk full", "storage refuses", "storage breaks", "storage busy"}
ANYWHERE: dict[str, Fault] = {
    "driver killed": _driver(signal.SIGKILL),
    "driver told to end": _driver(signal.SIGTERM),
    "body killed": _signalled(signal.SIGKILL, BODY),
    "body told to end": _signalled(signal.SIGTERM, BODY),
    "node lost": _node,
    "raylet killed": _raylet,
    "head lost": _head,
    "clock set": _clock,
    "MLflow killed": _tracking("killed"),
    "MLflow hangs": _tracking("hangs"),
}
IN_TRAINING: dict[str, Fault] = {
    "rank killed": _signalled(signal.SIGKILL, *RANK),
    "rank told to end": _signalled(signal.SIGTERM, *RANK),
    "rank stopped": _signalled(signal.SIGSTOP, *RANK),
    "all ranks stopped": _all_ranks_stopped,
    "node drained": _drained,
    "checkpoint: bits": _damaged("bits"),
    "checkpoint: cut": _damaged("cut"),
    "checkpoint: gone": _damaged("gone"),
}
IN_DATA: dict[str, Fault] = {"worker killed": _signalled(signal.SIGKILL, *SHARDS)}
OF_PLACE: dict[str, dict[str, Fault]] = {
    "disk": {"disk full": _full},
    "s3": {
        "storage refuses": _storage("refuses", 4),
        "storage breaks": _storage("breaks", 4),
        "storage busy": _storage("busy", 4),
        "storage slow": _storage("slow", 6),
    },
}
EVERY = {*ANYWHERE, *IN_TRAINING, *IN_DATA, *(kind for found in OF_PLACE.values() for kind in found)}
