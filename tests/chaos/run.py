"""Chaos: whole pipelines on three Ray nodes, disturbed by faults of every kind, must end with what an undisturbed run
makes, file by file. In: a seed and how many faults. Out: a table of fault, stage and time lost; exit code 0 where all
pipelines came out equal.

    python tests/chaos/run.py --faults 100 --seed 1 [--seconds 230] [--folder build/chaos]

A round is one pipeline with some faults. What is done is kept in the folder: started again with the same seed the tool
goes on. After `--seconds` it begins no round and injects no fault, and lets the pipeline that runs come to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]

import disturbed  # noqa: E402
import faults as kinds  # noqa: E402
from nodes import Nodes  # noqa: E402
from server import Server  # noqa: E402

from omniloom.infra import storage  # noqa: E402

_OMNILOOM = [sys.executable, "-m", "omniloom.pipelines.cli"]
_LOOK_SECONDS = 0.25
_ROUND_SECONDS = 420.0  # a pipeline that has not ended by then has not recovered
_RERUNS = 12  # of the driver in a round
_DATA = ("ingest", "pretokenize", "evaluate")


@dataclass
class Injected:
    """A fault of a round: when it is due (`at` shards or steps of the stage are done), and what came of it."""

    stage: str
    at: int
    kind: str
    what: str = ""
    lost: float | None = None  # seconds until more was done than before
    by_itself: bool = True  # no further `omniloom run` was needed
    equal: bool | None = None


@dataclass
class Round:
    number: int
    place: str
    pictures: bool
    faults: list[Injected]


def plan(seed: int, number: int) -> Round:
    """What is done in a round, by the seed alone."""
    rng = random.Random(f"{seed} {number}")
    place, pictures = ("folder", "disk", "s3")[number % 3], number % 4 == 3
    here = kinds.OF_PLACE[place]
    anywhere = [*kinds.ANYWHERE, *here] if place != "disk" else [*kinds.ANYWHERE]
    # Each kind has its turn, in an order of the seed's.
    training = [*kinds.IN_TRAINING, *kinds.ANYWHERE, *here, *here, *(kinds.RARE if number % 2 == 0 else ())]
    turns = random.Random(seed).sample(training, len(training))
    due = [turns[(number * 5 + i) % len(turns)] for i in range(5)]
    steps = sorted(rng.sample(range(20, 140 if pictures else 300, 20), 3 if pictures else 5))
    found = [Injected("train", at, kind) for at, kind in zip(steps, due)]
    if pictures:
        trained = [*kinds.IN_TRAINING, *kinds.ANYWHERE]
        found += [Injected("tokenizer_image", at, rng.choice(trained)) for at in sorted(rng.sample((20, 40, 60), 2))]
    for stage in _DATA:
        choice = anywhere if stage == "evaluate" else [*anywhere, *kinds.IN_DATA]
        found.append(Injected(stage, 0, rng.choice(choice)))
    return Round(number, place, pictures, found)


class Play:
    """One round: runs the pipeline again and again until it is done, and injects what is due."""

    def __init__(self, round_: Round, scene: kinds.Scene, command: list[str], log: Path, until: float):
        self.until = until  # by the monotonic clock; later nothing is injected
        self.round, self.scene, self.command, self.log = round_, scene, command, log
        self.due, self.under_way, self.done = list(round_.faults), [], set()
        self.every = kinds.ANYWHERE | kinds.IN_TRAINING | kinds.IN_DATA | kinds.RARE | kinds.OF_PLACE[round_.place]

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
            time.sleep(1.0)
        return False

    def _drive(self, deadline: float) -> int:
        with open(self.log, "ab") as log:
            log.write(f"--- {' '.join(self.command[2:])}\n".encode())
            log.flush()
            env = {**self.scene.nodes.env, "CHAOS_CLOCK": str(self.scene.folder / "clock-driver")}
            self.scene.driver = driver = subprocess.Popen(
                self.command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
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
            log.write(f"--- ended with {driver.returncode}\n".encode())
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
            # Those that end processes come one at a time, so that each has its own time.
            free = fault.kind in kinds.QUIET or all(other.kind in kinds.QUIET for other, *_ in self.under_way)
            if free and at is not None and at >= fault.at and at != _DONE:
                self._inject(fault, reached)

    def _inject(self, fault: Injected, reached: dict[str, float]) -> None:
        moment = time.monotonic()
        if (what := self.every[fault.kind](self.scene, fault.stage)) is None:
            return  # nobody there yet; it stays due
        fault.what = what
        self.due.remove(fault)
        self.under_way.append((fault, moment, reached))
        print(
            f"  {time.strftime('%H:%M:%S')} {fault.stage} at {reached[fault.stage]:g}: {fault.kind}: {what}", flush=True
        )

    def _further(self, reached: dict[str, float], before: dict[str, float], stage: str) -> bool:
        """Of a training a whole stretch between checkpoints: one that is told to end writes one more at once."""
        return reached.get(stage, 0) >= before[stage] + (1 if stage in _DATA else disturbed.CHECKPOINT_EVERY)

    def _reached(self) -> dict[str, float]:
        """{stage: shards or steps that are done}, of those that have begun; `_DONE` for those that are."""
        found: dict[str, float] = {}
        with contextlib.suppress(FileNotFoundError):  # files come and go while one looks
            for name in storage.list_files(storage.join(self.scene.root, "work")):
                stage, _, file = name.split("/", 2)
                found.setdefault(stage, 0)
                if file.startswith("state/checkpoints/step-") and file.endswith(".json"):
                    found[stage] = max(found[stage], int(file[-13:-5]))
                elif file.startswith("state/shards/"):
                    found[stage] += 1
            for name in storage.list_files(storage.join(self.scene.root, "artifacts")):
                if name.endswith("/manifest.json"):
                    found[name.split("/")[0]] = _DONE
        return found


_DONE = float("inf")


@contextlib.contextmanager
def stage_for(round_: Round, folder: Path) -> Iterator[tuple[kinds.Scene, list[str]]]:
    """The cluster and the storage of a round, and the driver's command."""
    config = disturbed.write_config(folder.parent, round_.pictures)
    with contextlib.ExitStack() as stack:
        root, env, proxy = stack.enter_context(disturbed.place(round_.place, folder))
        for whose in ("driver", "nodes"):
            (folder / f"clock-{whose}").write_bytes(struct.pack("d", 0.0))
        env |= {"LD_PRELOAD": str(_clock_library(folder.parent)), "CHAOS_CLOCK": str(folder / "clock-nodes")}
        env |= {"OMNILOOM_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        server = stack.enter_context(Server(folder)) if round_.place == "folder" else None
        nodes = stack.enter_context(Nodes(folder / "nodes", env))
        scene = kinds.Scene(nodes, root, random.Random(f"{round_.number}"), folder, proxy, server)
        tracking = server.uri if server else f"sqlite:///{folder / 'mlflow.db'}"
        overrides = [f"storage={root}", f"cluster.address={nodes.address}", f"tracking.uri={tracking}"]
        yield scene, [*_OMNILOOM, "run", str(config), *overrides]


def _clock_library(folder: Path) -> Path:
    library = folder / "clock.so"
    if not library.exists():
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    return library


def reference(folder: Path, pictures: bool) -> dict[str, str]:
    """What an undisturbed run makes, on this machine's own Ray."""
    kept = folder / f"reference-{'pictures' if pictures else 'texts'}.json"
    if not kept.exists():
        config = disturbed.write_config(folder, pictures)
        root = folder / "undisturbed" / config.stem
        subprocess.run(
            [
                sys.executable,
                "-m",
                "omniloom.pipelines.cli",
                "run",
                str(config),
                f"storage={root}",
                "cluster.num_cpus=4",
            ],
            cwd=ROOT,
            check=True,
        )
        kept.write_text(json.dumps(disturbed.made(str(root)), indent=1))
    return json.loads(kept.read_text())


def play(round_: Round, folder: Path, until: float) -> Round:
    """The round with what came of its faults; those whose moment never came are left out."""
    wanted, here = reference(folder, round_.pictures), folder / f"round-{round_.number:03d}"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    print(f"round {round_.number}: {'pictures' if round_.pictures else 'texts'} on {round_.place}", flush=True)
    with stage_for(round_, here) as (scene, command):
        ended = Play(round_, scene, command, here / "driver.log", until).run()
        found = disturbed.made(scene.root)
    differs = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differs:
        print(f"  DIFFERS: {', '.join(differs[:5])}, see {here}", flush=True)
    round_.faults = [fault for fault in round_.faults if fault.what]
    for fault in round_.faults:
        fault.equal = ended and not differs
    print(f"  {'equal' if ended and not differs else 'NOT EQUAL'}, {len(round_.faults)} faults", flush=True)
    return round_


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="inject nothing after so many seconds")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "chaos")
    options = parser.parse_args()
    folder, until = options.folder.resolve() / f"seed-{options.seed}", time.monotonic() + options.seconds
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rounds: list[Round] = []
    for number in itertools.count():
        if sum(len(round_.faults) for round_ in rounds) >= options.faults:
            break
        kept = folder / f"round-{number:03d}.json"
        if not kept.exists():
            if time.monotonic() > until:
                break
            kept.write_text(json.dumps(asdict(play(plan(options.seed, number), folder, until)), indent=1))
        content = json.loads(kept.read_text())
        rounds.append(Round(**content | {"faults": [Injected(**fault) for fault in content["faults"]]}))
    found = [fault for round_ in rounds for fault in round_.faults]
    equal = sum(bool(fault.equal) for fault in found)
    print(table(rounds))
    print(f"{len(found)} faults in {len(rounds)} pipelines, {equal} recovered with equal output (seed {options.seed})")
    return 0 if equal == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
