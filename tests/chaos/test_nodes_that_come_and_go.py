"""`workers.count: {min, max}` on three real Ray nodes: one is lost, and training goes on with fewer workers at the same
rows a step; one comes, and it grows. What each step trains on, and its loss, are those of a training on one worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

import disturbed  # noqa: E402
from nodes import Nodes  # noqa: E402

from omniloom.infra.training.checkpoint import newest_step  # noqa: E402

pytestmark = pytest.mark.slow
OMNILOOM = [sys.executable, "-m", "omniloom.pipelines.cli"]
STEPS = 200
LIMIT = 400.0
# Every Python that has this in a folder of its PYTHONPATH; a rank then tells what it collates. MASTER_PORT is another
# one in each attempt.
RECORDER = """
import importlib.abc, importlib.util, os, sys, time

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "omniloom.stages.train.rows":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def executed(module):
            execute(module)
            if "MASTER_PORT" in os.environ and "RANK" in os.environ:
                patch()
        spec.loader.exec_module = executed
        return spec

def patch():
    sys.path.append({here!r})
    from pathlib import Path
    from elastic import record
    from omniloom.stages.train.trainer import UnifiedTrainer
    told = [os.environ[name] for name in ("MASTER_PORT", "WORLD_SIZE", "RANK")]
    record(Path(os.environ["SEEN"], f"{{time.time_ns():020d}}-" + "-".join(told) + ".jsonl"))
    step_of = UnifiedTrainer.train_step
    def train_step(self, step, batch):
        time.sleep(float(os.environ["ALONE_SECONDS"]) if os.environ["WORLD_SIZE"] == "1" else 0)
        return step_of(self, step, batch)
    UnifiedTrainer.train_step = train_step

sys.meta_path.insert(0, Finder())
"""


class Training:
    """A run of the pipeline in a storage of its own, which goes on in the background."""

    def __init__(self, config: Path, store: Path, env: dict[str, str], *overrides: str):
        self.store, self.log = store, store.with_suffix(".log")
        command = [*OMNILOOM, "run", str(config), f"storage={store}", *overrides]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=HERE.parents[1], env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not what():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.3)

    def end(self) -> None:
        assert self.process.wait(LIMIT) == 0, self.log.read_text()

    def step(self) -> int:
        return max((newest_step(str(state)) for state in self.store.glob("work/train/*/state")), default=0)

    def losses(self) -> dict[int, float]:
        (history,) = self.store.glob("artifacts/train/*/report/history.jsonl")
        rows = map(json.loads, history.read_text().splitlines())
        return {row["step"]: row["loss"] for row in rows if "loss" in row}


class Seen:
    """What ranks told: by attempt (oldest first) its number of ranks, and by step the rows of the latest attempt."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    def files(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for file in sorted(self.folder.iterdir()):
            found.setdefault(file.name.split("-")[1], []).append(file)
        return found

    def sizes(self) -> list[int]:
        return [int(files[0].name.split("-")[2]) for files in self.files().values()]

    def rows(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for files in self.files().values():
            attempt: dict[int, list[str]] = {}
            for line in (line for file in files for line in file.read_text().splitlines()):
                row = json.loads(line)
                attempt.setdefault(row["step"], []).extend(map(json.dumps, row["rows"]))
            found |= attempt
        return {step: sorted(rows) for step, rows in found.items() if step < STEPS}


def config_in(folder: Path) -> Path:
    disturbed.write_corpus(folder / "corpus")
    settings = disturbed.settings(folder / "corpus", pictures=False)
    train = settings["stages"]["train"]
    train |= {"steps": STEPS, "validate_every": STEPS}
    # The head has too few CPUs for one of these, the other nodes have room for one each.
    train["workers"] |= {"count": {"min": 1, "max": 2}, "cpus": 2, "log_every": 1, "hang_seconds": 30}
    (folder / "texts.yaml").write_text(yaml.safe_dump(settings))
    return folder / "texts.yaml"


def test_another_head_in_the_place_of_the_first_ends_the_run_with_a_clear_word(tmp_path):
    """What the run waits for never comes: it ends, and the same command goes on under the new head."""
    config = config_in(tmp_path)
    with Nodes(tmp_path / "nodes", {"OMP_NUM_THREADS": "1"}) as nodes:

        def run(*options: str) -> Training:
            return Training(config, tmp_path / "store", nodes.env, f"cluster.address={nodes.address}", *options)

        training = run("stages.train.workers.count=1", "stages.train.steps=100000")
        try:
            training.wait_for(lambda: training.step() >= 20)
            for number in reversed(list(nodes.processes)):
                nodes.kill(number)
            for number in range(3):
                nodes.start(number)
                nodes.wait_for_head()
            assert training.process.wait(120) == 1
        finally:
            if training.process.poll() is None:
                training.process.kill()
            training.process.wait()
        told = training.log.read_text()
        assert "another one in its place knows nothing of this run" in told and "again:  omniloom run" in told
        nodes.wait_for_all()
        run("--until", "pretokenize").end()


def test_a_node_leaves_and_one_comes(tmp_path):
    config, hooks = config_in(tmp_path), tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(RECORDER.format(here=str(HERE)))
    env = {"PYTHONPATH": str(hooks), "SEEN": str(tmp_path / "plain"), "ALONE_SECONDS": "0", "OMP_NUM_THREADS": "1"}
    plain = Seen(tmp_path / "plain")
    alone = ("cluster.num_cpus=3", "stages.train.workers.count=1", "--until", "train")
    undisturbed = Training(config, tmp_path / "store", os.environ | env, *alone)
    undisturbed.end()
    shutil.copytree(tmp_path / "store", tmp_path / "disturbed")
    shutil.rmtree(tmp_path / "disturbed" / "artifacts" / "train")

    seen = Seen(tmp_path / "seen")
    # Slow enough while one is left for Ray to look at what has come.
    with Nodes(tmp_path / "nodes", env | {"SEEN": str(seen.folder), "ALONE_SECONDS": "1"}) as nodes:
        training = Training(
            config, tmp_path / "disturbed", nodes.env, f"cluster.address={nodes.address}", "--until", "train"
        )
        try:
            training.wait_for(lambda: training.step() >= 20)
            assert seen.sizes() == [2]
            (number, _), *_ = nodes.workers("RayTrainWorker")
            nodes.kill(number)
            before = training.step()
            training.wait_for(lambda: training.step() >= before + 20)
            assert seen.sizes() == [2, 1]
            nodes.start(number)
            training.wait_for(lambda: len(seen.sizes()) > 2)
            training.end()
        finally:
            if training.process.poll() is None:
                training.process.kill()
            training.process.wait()
    assert seen.sizes() == [2, 1, 2], training.log.read_text()
    assert seen.rows() == plain.rows() and len(plain.rows()) == STEPS
    losses = undisturbed.losses()
    assert training.losses() == pytest.approx(losses, abs=1e-5) and len(losses) == STEPS
