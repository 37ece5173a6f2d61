"""Chaos: whole pipelines on three Ray nodes, disturbed by faults of every kind, must end with what an undisturbed run
makes, file by file. In: a seed and how many faults. Out: a table of fault, stage and time lost; exit code 0 where all
pipelines came out equal.

    python tests/chaos/run.py --faults 100 --seed 1 [--seconds 240] [--folder build/chaos]

A round is one pipeline with about 30 faults. What is done is kept in the folder: started again with the same seed the
tool goes on. After `--seconds` it begins no round and injects no fault, and lets the pipeline come to its end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests")]

import disturbed  # noqa: E402
from play import OMNILOOM, Play, table  # noqa: E402
from schedule import Injected, Round, plan, thinned  # noqa: E402
from world import World  # noqa: E402

from omniloom.infra import tree  # noqa: E402


def reference(folder: Path, pictures: bool) -> dict[str, str]:
    """What an undisturbed run makes, on this machine's own Ray."""
    kept = folder / f"reference-{'pictures' if pictures else 'texts'}.json"
    if not kept.exists():
        config = disturbed.write_config(folder, pictures)
        root = folder / "undisturbed" / config.stem
        subprocess.run([*OMNILOOM, "run", str(config), f"storage={root}", "cluster.num_cpus=4"], cwd=ROOT, check=True)
        kept.write_text(json.dumps(disturbed.made(str(root)), indent=1))
    return json.loads(kept.read_text())


def play(round_: Round, world: World, folder: Path, until: float) -> Round:
    """The round with what came of its faults; those whose moment never came are left out."""
    wanted, here = reference(folder, round_.pictures), folder / f"round-{round_.number:03d}"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    config = disturbed.write_config(folder, round_.pictures)
    round_.commit = tree.revision() or ""
    print(f"round {round_.number}: {'pictures' if round_.pictures else 'texts'} on {round_.place}", flush=True)
    began = time.monotonic()
    with world.scene(round_, here) as scene:
        ended = Play(round_, scene, config, here / "driver.log", until).run()
        found = disturbed.made(scene.root)
        differs = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if differs or not ended:
            print(f"  DIFFERS: {', '.join(differs[:5])}, see {here}", flush=True)
            disturbed.keep(scene.root, here / "found")
    round_.faults = [fault for fault in round_.faults if fault.what]
    for fault in round_.faults:
        fault.equal = ended and not differs
    told = "equal" if ended and not differs else "NOT EQUAL"
    print(f"  {told}, {len(round_.faults)} faults, {time.monotonic() - began:.0f} s", flush=True)
    return round_


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
    with contextlib.ExitStack() as stack:
        world = None
        for number in itertools.count():
            left = options.faults - sum(len(round_.faults) for round_ in rounds)
            if left <= 0:
                break
            kept = folder / f"round-{number:03d}.json"
            if not kept.exists():
                if time.monotonic() > until:
                    break
                round_ = plan(options.seed, number)
                round_.faults = thinned(round_.faults, left)
                reference(folder, round_.pictures)
                world = world or stack.enter_context(World(folder))
                kept.write_text(json.dumps(asdict(play(round_, world, folder, until)), indent=1))
            content = json.loads(kept.read_text())
            rounds.append(Round(**content | {"faults": [Injected(**fault) for fault in content["faults"]]}))
    found = [fault for round_ in rounds for fault in round_.faults]
    equal = sum(bool(fault.equal) for fault in found)
    print(table(rounds))
    print(f"{len(found)} faults in {len(rounds)} pipelines, {equal} recovered with equal output (seed {options.seed})")
    return 0 if equal == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
