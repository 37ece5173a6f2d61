"""What a running training meets when Ray's nodes leave and come, on three real ones.

`workers.count: {min, max}`: a node is lost, and training goes on with fewer workers at the same rows a step; one comes,
and it grows. What each step trains on, and its loss, are those of a training in one process. Another head ends a run.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

import disturbed  # noqa: E402
import elastic  # noqa: E402
from nodes import Nodes  # noqa: E402

from omniloom.infra.training.checkpoint import newest_step  # noqa: E402

pytestmark = pytest.mark.slow
OMNILOOM = [sys.executable, "-m", "omniloom.pipelines.cli"]
STEPS = 150
LIMIT = 400.0
# Every Python that has this in a folder of its PYTHONPATH: a rank then tells what it collates. MASTER_PORT is another
# one in each attempt.
RECORDER = """
import importlib.abc, importlib.util, os, sys, time
from pathlib import Path

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "omniloom.stages.train.rows":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def executed(module):
            execute(module)
            if "MASTER_PORT" in os.environ:
                patch()
        spec.loader.exec_module = executed
        return spec

def patch():
    from elastic import record
    from omniloom.stages.train.trainer import UnifiedTrainer
    told = [f"{time.time_ns():020d}", *(os.environ[name] for name in ("MASTER_PORT", "WORLD_SIZE", "RANK"))]
    record(Path(os.environ["SEEN"], "-".join(told) + ".jsonl"))
    step_of = UnifiedTrainer.train_step
    def train_step(self, step, batch):
        time.sleep(float(os.environ["ALONE_SECONDS"]) if os.environ["WORLD_SIZE"] == "1" else 0)
        return step_of(self, step, batch)
    UnifiedTrainer.train_step = train_step

sys.meta_path.insert(0, Finder())
"""
# The training alone, on a cluster or in this process.
DRIVER = """
import pickle, sys
import corpora
from omniloom.infra import cluster
from omniloom.infra.progress import Progress
from omniloom.infra.training.launch import launch, single_process
from omniloom.stages.train.config import Config
from omniloom.stages.train.job import Job

class Quiet(corpora.Silent):
    def close(self, *seconds): pass
    def log_text(self, text, file): print(file, text, flush=True)

class Told(Progress):
    def note(self, text): print(text, flush=True)
    def say(self, text): print(text, flush=True)

def train(job):  # in a rank the trainer is imported once its place in the group is known
    from omniloom.stages.train.worker import train_worker
    train_worker(job)

corpus, work, address = sys.argv[1:]
config, tokens, visual = pickle.load(open(corpus, "rb"))
config = Config.model_validate(config)
places = {"output": f"{work}/output", "state": f"{work}/state"}
if address:
    job = Job(config, tokens, visual, **places, progress=Told("train"), tracker=Quiet())
    cluster.connect(address, log_to_driver=False)
    launch(train, job, config.workers, "train", work)
else:
    with single_process():
        train(Job(config, tokens, visual, **places, progress=Progress("train"), tracker=Quiet()))
"""


class Running:
    """A command that goes on in the background; its training's checkpoints are in `state`."""

    def __init__(self, command: list[str], state: Callable[[], Path | None], log: Path, env: dict[str, str]):
        self.state, self.log = state, log
        with open(log, "ab") as file:
            self.process = subprocess.Popen(
                command, cwd=HERE.parents[1], env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exception) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT
        while not what():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.3)

    def end(self) -> None:
        assert self.process.wait(LIMIT) == 0, self.log.read_text()

    def step(self) -> int:
        return newest_step(str(state)) if (state := self.state()) else 0


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


def losses(work: Path) -> dict[int, float]:
    rows = map(json.loads, (work / "output" / "report" / "history.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_another_head_in_the_place_of_the_first_ends_the_run_with_a_clear_word(tmp_path):
    """What the run waits for never comes: it ends, and the same command goes on under the new head."""
    disturbed.write_corpus(tmp_path / "corpus")
    config = disturbed.write_config(tmp_path, pictures=False)

    def state() -> Path | None:
        return next(tmp_path.glob("store/work/train/*/state"), None)

    with Nodes(tmp_path / "nodes", {"OMP_NUM_THREADS": "1"}) as nodes:

        def run(*options: str) -> Running:
            options = (f"storage={tmp_path / 'store'}", f"cluster.address={nodes.address}", *options)
            return Running([*OMNILOOM, "run", str(config), *options], state, tmp_path / "run.log", nodes.env)

        with run("stages.train.workers.count=1", "stages.train.steps=100000") as training:
            training.wait_for(lambda: training.step() >= 20)
            for number in reversed(list(nodes.processes)):
                nodes.kill(number)
            for number in range(3):
                nodes.start(number)
                nodes.wait_for_head()
            assert training.process.wait(120) == 1
        told = training.log.read_text()
        assert "another one in its place knows nothing of this run" in told and "again:  omniloom run" in told
        nodes.wait_for_all()
        with run("--until", "pretokenize") as again:
            again.end()


def test_a_node_leaves_and_one_comes(tmp_path):
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "sitecustomize.py").write_text(RECORDER)
    settings = elastic._config(elastic.Attempt(1, 1, 1)).model_dump(mode="json")
    settings |= {"steps": STEPS, "validate_every": STEPS}
    # The head has too few CPUs for one of these, the other nodes have room for one each.
    workers = {"count": {"min": 1, "max": 2}, "cpus": 2, "checkpoint_every": 10, "log_every": 1}
    settings["workers"] = workers
    with open(tmp_path / "corpus.pkl", "wb") as file:
        pickle.dump((settings, *elastic.corpus_in(tmp_path)), file)
    python_path = os.pathsep.join([str(tmp_path / "hooks"), str(HERE), str(HERE.parent)])

    def variables(seen: Seen, alone: str) -> dict[str, str]:
        return {"PYTHONPATH": python_path, "SEEN": str(seen.folder), "ALONE_SECONDS": alone, "OMP_NUM_THREADS": "1"}

    def run(work: Path, address: str, env: dict[str, str]) -> Running:
        command = [sys.executable, "-c", DRIVER, str(tmp_path / "corpus.pkl"), str(work), address]
        return Running(command, lambda: work / "state", work.with_suffix(".log"), env)

    plain, seen = Seen(tmp_path / "seen-plain"), Seen(tmp_path / "seen")
    with run(tmp_path / "plain", "", os.environ | variables(plain, "0")) as undisturbed:
        undisturbed.end()
    # Slow enough while one is left for Ray to look at what has come.
    with Nodes(tmp_path / "nodes", variables(seen, "1")) as nodes:
        with run(tmp_path / "disturbed", nodes.address, nodes.env) as training:
            training.wait_for(lambda: training.step() >= 20)
            assert seen.sizes() == [2]
            (number, _), *_ = nodes.workers("RayTrainWorker")
            nodes.kill(number)
            before = training.step()
            training.wait_for(lambda: training.step() >= before + 10)
            assert seen.sizes() == [2, 1], training.log.read_text()
            nodes.start(number)
            training.wait_for(lambda: len(seen.sizes()) > 2)
            training.end()
    assert seen.sizes() == [2, 1, 2], training.log.read_text()
    assert seen.rows() == plain.rows() and len(plain.rows()) == STEPS
    wanted = losses(tmp_path / "plain")
    assert losses(tmp_path / "disturbed") == pytest.approx(wanted, abs=1e-5) and len(wanted) == STEPS
