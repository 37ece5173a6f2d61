"""Play: one pipeline, run again and again until it is done, while what is due is done to it."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
import time
from pathlib import Path

import disturbed
import faults as kinds
from schedule import DATA, Injected, Round

from omniloom.infra import storage

ROOT = Path(__file__).resolve().parents[2]
OMNILOOM = [sys.executable, "-m", "omniloom.pipelines.cli"]
_LOOK_SECONDS = 0.4
_ROUND_SECONDS = 1200.0  # a pipeline that has not ended by then has not recovered
_RERUNS = 20  # of the driver in a round
_APART_SECONDS = 2.0  # between faults that end processes
_DONE = float("inf")


class Play:
    """One round. After `until`, by the monotonic clock, nothing is injected."""

    def __init__(self, round_: Round, scene: kinds.Scene, config: Path, log: Path, until: float):
        self.round, self.scene, self.log, self.until = round_, scene, log, until
        self.command = [*OMNILOOM, "run", str(config), *scene.world.overrides(scene.root)]
        self.due, self.under_way = list(round_.faults), list[tuple[Injected, float, dict[str, float]]]()
        self.every = kinds.ANYWHERE | kinds.IN_TRAINING | kinds.IN_DATA | kinds.OF_PLACE[round_.place]

    def run(self) -> bool:
        """Whether the pipeline came to its end."""
        deadline = time.monotonic() + _ROUND_SECONDS
        for _ in range(_RERUNS):
            code = self._drive(deadline)
            if code == 0:
                return True
            if time.monotonic() > deadline:
                return False
            for fault, *_ in self.under_way:
                fault.by_itself = False
            self.scene.settle()
            self.scene.world.nodes.wait_for_all()  # a cluster that lacks nodes refuses the command, which is right
        return False

    def _drive(self, deadline: float) -> int:
        with open(self.log, "ab") as log:
            log.write(f"--- {time.strftime('%H:%M:%S')} {' '.join(self.command[2:])}\n".encode())
            log.flush()
            self.scene.driver = driver = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.scene.world.driver_env(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while driver.poll() is None and time.monotonic() < deadline:
                    self.scene.settle()
                    self._look()
                    time.sleep(_LOOK_SECONDS)
            finally:
                if driver.poll() is None:
                    driver.kill()
                driver.wait()
            log.write(f"--- {time.strftime('%H:%M:%S')} ended with {driver.returncode}\n".encode())
        self._look()
        return driver.returncode

    def _look(self) -> None:
        """Note what has gone on since a fault, and inject the next one where its moment has come."""
        reached, now = self._reached(), time.monotonic()
        for entry in [*self.under_way]:
            fault, moment, before = entry
            if fault.kind in kinds.LASTING and self.scene.later:
                continue
            if self._further(reached, before, fault.stage):
                fault.lost = round(now - moment, 1)
                self.under_way.remove(entry)
        if self.scene.driver.poll() is not None or now > self.until:
            return
        for fault in [*self.due]:
            at = reached.get(fault.stage)
            if at is not None and fault.at <= at != _DONE and self._has_its_turn(fault, now):
                self._inject(fault, reached)

    def _has_its_turn(self, fault: Injected, now: float) -> bool:
        """Those that end processes come one after the other: those of one moment in quick succession, others when what
        they disturb has recovered from those before."""
        if fault.kind in kinds.QUIET:
            return True
        loud = [(other, moment) for other, moment, _ in self.under_way if other.kind not in kinds.QUIET]
        if any(now - moment < _APART_SECONDS for _, moment in loud):
            return False
        return all((other.stage, other.at) == (fault.stage, fault.at) for other, _ in loud)

    def _inject(self, fault: Injected, reached: dict[str, float]) -> None:
        moment = time.monotonic()
        if (what := self.every[fault.kind](self.scene, fault.stage)) is None:
            return  # nobody there yet; it stays due
        fault.what = what
        self.due.remove(fault)
        self.under_way.append((fault, moment, reached))
        told = f"{fault.stage} at {reached[fault.stage]:g}: {fault.kind}: {what}"
        print(f"  {time.strftime('%H:%M:%S')} {told}", flush=True)

    def _further(self, reached: dict[str, float], before: dict[str, float], stage: str) -> bool:
        """Of a training a whole stretch between checkpoints: one that is told to end writes one more at once."""
        return reached.get(stage, 0) >= before[stage] + (1 if stage in DATA else disturbed.CHECKPOINT_EVERY)

    def _reached(self) -> dict[str, float]:
        """{stage: shards or steps that are done}, of those that have begun; `_DONE` for those that are."""
        found: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError):  # files come and go while one looks
            for name in storage.list_files(storage.join(self.scene.root, "work")):
                stage, _, file = name.split("/", 2)
                found.setdefault(stage, 0)
                if file.startswith("state/checkpoints/step-") and file.endswith(".json") and file.count("/") == 2:
                    found[stage] = max(found[stage], int(file[-13:-5]))
                elif file.startswith("state/shards/"):
                    found[stage] += 1
            for name in storage.list_files(storage.join(self.scene.root, "artifacts")):
                if name.endswith("/manifest.json"):
                    found[name.split("/")[0]] = _DONE
        return found


def table(rounds: list[Round]) -> str:
    """Each kind of fault by stage: how many, how many came out equal, how many without a further `omniloom run`, and
    the seconds until the stage was further than before."""
    rows: dict[tuple[str, str], list[Injected]] = {}
    for fault in itertools.chain.from_iterable(round_.faults for round_ in rounds):
        rows.setdefault((fault.kind, fault.stage), []).append(fault)
    lines = [
        "| fault | stage | injected | equal | by itself | seconds lost, median | most |",
        "|---|---|---|---|---|---|---|",
    ]
    for (kind, stage), found in sorted(rows.items()):
        lost = sorted(fault.lost for fault in found if fault.lost is not None)
        times = f"{lost[len(lost) // 2]:.0f} | {lost[-1]:.0f}" if lost else "- | -"
        own = sum(fault.by_itself for fault in found)
        equal = sum(bool(fault.equal) for fault in found)
        lines.append(f"| {kind} | {stage} | {len(found)} | {equal} | {own} | {times} |")
    return "\n".join(lines)
