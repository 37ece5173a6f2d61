"""How a run ends when something ends it: signals, killed processes of every kind, a lost lease, `stop` of a job.

A small text pipeline on real Ray; its data stages are made once, and each test trains on a copy of the storage.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from cluster_fixture import start_cluster

from omniloom.pipelines.record import close_killed
from omniloom.pipelines.signals import LINE

pytestmark = pytest.mark.slow
OMNILOOM = [sys.executable, "-m", "omniloom.pipelines.cli"]
ROOT = Path(__file__).parents[2]
TRACES = ("SIGTERM received", "PC: @", "state-dump", "Traceback")


def settings(folder: Path) -> dict:
    return {
        "name": "tiny",
        "storage": str(folder / "store"),
        "tracking": {"system_metrics": False},
        "cluster": {"num_cpus": 3, "object_store_bytes": 200 << 20},
        "stages": {
            "ingest": {
                "sources": [{"kind": "text", "uri": str(folder / "texts")}],
                "chunk_chars": 120,
                "splits": {"train": 0.6, "validation": 0.2, "test": 0.2},
            },
            "pretokenize": {"vocab_size": 300, "workers": 1},
            "train": {
                "objectives": {},
                "model": {"width": 32, "layers": 2, "heads": 2, "time_dim": 16},
                "packing": {"length": 96, "window_rows": 8, "mixture": {"text": 1}},
                "batch_rows": 4,
                "steps": 100000,
                "engine": {"zero_stage": 1},
                "validate_every": 100000,
                "validation_rows": 2,
                "workers": {"count": 1, "log_every": 10, "checkpoint_every": 10},
            },
            "evaluate": {"texts": 4, "cpus": 1},
        },
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "texts").mkdir()
    for n in range(40):
        (folder / "texts" / f"{n}.txt").write_text(
            "\n\n".join(f"Chapter {i}. A square moves {n * i % 97} steps, number {n}." for i in range(6))
        )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings(folder)))
    done = subprocess.run(
        [*OMNILOOM, "run", str(folder / "tiny.yaml"), "--until", "pretokenize"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "tiny: ran ingest, pretokenize" in done.stdout, done.stdout + done.stderr
    return folder


class Training:
    """A run of the train stage in a process of its own, on its own copy of the storage."""

    def __init__(self, prepared: Path, folder: Path, *overrides: str):
        self.store, self.log = folder / "store", folder / "log"
        shutil.copytree(prepared / "store", self.store)
        self.arguments = [str(prepared / "tiny.yaml"), f"storage={self.store}", *overrides, "--until", "train"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*OMNILOOM, "run", *self.arguments],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def steps(self) -> list[int]:
        return sorted(
            int(path.stem.rpartition("-")[2]) for path in self.store.glob("work/train/*/state/checkpoints/step-*.json")
        )

    def until(self, ready: Callable[[], object], seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None and time.monotonic() < deadline, self.text()
            time.sleep(0.1)

    def says(self, words: str) -> None:
        self.until(lambda: words in self.text())

    def gets_further(self) -> None:
        last = self.steps()[-1]
        self.until(lambda: self.steps()[-1] > last + 20)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def family(self, words: str = "") -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found += [process] if words in " ".join(process.cmdline()) else []
        return found

    def kill(self, words: str) -> None:
        victims = self.family(words)
        assert victims, words
        for victim in victims:
            victim.kill()

    def ended(self, code: int, seconds: float = 120) -> list[str]:
        """The lines of a run that has ended with this code, and without a trace of anybody's."""
        assert self.process.wait(seconds) == code, self.text()
        assert not [trace for trace in TRACES if trace in self.text()], self.text()
        return self.text().strip().splitlines()

    def record(self) -> dict:
        return json.loads(max(self.store.glob("runs/*.json"), key=lambda path: path.stat().st_mtime).read_text())

    def tracked(self) -> dict[str, str]:
        """The status of the last run of each name; a pipeline's stands before the colon of what it tells of itself."""
        with contextlib.closing(sqlite3.connect(self.store / "mlflow.db")) as database:
            rows = database.execute("select name, status from runs order by start_time")
            return {name.partition(":")[0]: status for name, status in rows}


@pytest.fixture
def training(prepared, tmp_path) -> Iterator[Training]:
    with started(prepared, tmp_path) as run:
        yield run


@contextlib.contextmanager
def started(prepared: Path, folder: Path, *overrides: str) -> Iterator[Training]:
    run = Training(prepared, folder, *overrides)
    family: list[psutil.Process] = []
    try:
        run.until(run.steps)
        family = run.family()
        yield run
    finally:
        for process in [*family, run.process]:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                process.kill()
        run.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal(training, number):
    training.process.send_signal(number)
    assert training.ended(130)[-1] == LINE
    assert training.record()["status"] == training.record()["stages"]["train"]["status"] == "killed"
    tracked = training.tracked()
    assert tracked["tiny"] == tracked["train"] == "KILLED"
    assert not list(training.store.glob("leases/*/*.json"))
    (kept,) = re.findall(r"stopped after step (\d+) of 100000 \(the driver\), with a checkpoint of it", training.text())
    assert training.steps()[-1] == int(kept), "the step that ran is the most that is lost"


def test_a_second_signal_and_what_the_next_run_makes_of_it(training):
    training.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    training.process.send_signal(signal.SIGTERM)
    assert training.ended(130, 20)[-1] == LINE
    name = training.record()["id"]
    open_yet = [name] if training.record()["status"] == "running" else []
    assert close_killed(str(training.store)) == open_yet
    assert training.record()["status"] == "killed"


def test_a_killed_driver(training):
    """kill -9: its workers end by themselves and write no further checkpoint; the record is the next run's to close."""
    name = training.record()["id"]
    workers = [process for process in training.family("ray::") if "Agent" not in process.name()]  # those are Ray's own
    training.process.kill()
    training.process.wait()
    last = training.steps()[-1]
    _, alive = psutil.wait_procs(workers, 60)
    assert workers and not alive
    assert training.steps()[-1] <= last + 10, "the one that was being written"
    assert close_killed(str(training.store)) == [name]


def test_a_killed_body_goes_on_in_another_process(training):
    training.kill("ray::train")
    training.says("it goes on in another process")
    training.gets_further()
    training.process.send_signal(signal.SIGTERM)
    assert training.ended(130)[-1] == LINE


def test_a_rank_that_is_stopped_is_noticed_by_the_others_rhythm(prepared, tmp_path):
    """Of two ranks one is stopped: the other tells for both, and the group goes on from its last checkpoint. Then one
    is killed, and one is told to end, which counts as no failure."""
    overrides = [f"stages.train.workers.{field}" for field in ("count=2", "hang_seconds=4", "max_failures=1")]
    with started(prepared, tmp_path, *overrides, "cluster.num_cpus=4") as training:

        def ranks() -> list[psutil.Process]:
            return training.family("RayTrainWorker")

        for number, told in (
            (signal.SIGSTOP, "asked from outside"),
            (signal.SIGKILL, "a worker process died"),
            (signal.SIGTERM, "with a checkpoint of it"),
        ):
            assert len(ranks()) == 2
            ranks()[1].send_signal(number)
            training.says(told)
            training.gets_further()
        hung, died = re.findall(r"train: (.*training goes on from step \d+ \(.*\))", training.text())
        assert hung.startswith("step ") and "restart 1 of 1)" in hung and "restart 1 of 1, 2 in all)" in died
        training.process.send_signal(signal.SIGTERM)
        assert training.ended(130)[-1] == LINE
        (text,) = training.store.glob("mlflow/**/hangs/step-*.txt")
        assert text.read_text().count("=== rank") == 2 and "train_worker" in text.read_text()


@pytest.mark.parametrize(
    "words, told",
    [
        ("raylet/raylet", "error: stage train failed: the machine that it ran on is gone"),
        ("gcs/gcs_server", "error: Ray's head (GCS) at 127.0.0.1:"),
    ],
)
def test_a_killed_part_of_ray(training, words, told):
    training.kill(words)
    last = training.ended(1)[-1]
    assert last.startswith(told) and last.endswith("; the next run goes on from here")
    assert training.record()["status"] == "failed" and training.tracked()["tiny"] == "FAILED"


def test_a_lost_lease_ends_the_stage(training):
    """As where this machine slept, and another took over: nothing more is written, and the other's lease stays."""
    (lease,) = training.store.glob("leases/train/*.json")
    content = {**json.loads(lease.read_text()), "owner": "other:1:2:boot:3:abc"}
    lease.write_text(json.dumps(content))
    assert training.ended(1)[-1].startswith("error: stage train failed: another run has taken over")
    assert json.loads(lease.read_text()) == content
    assert not list(training.store.glob("artifacts/train/*"))


def test_stop_of_a_job(prepared, tmp_path):
    """`omniloom stop` ends the run on the cluster as Ctrl-C does: its log, its record, MLflow."""
    store = tmp_path / "store"
    shutil.copytree(prepared / "store", store)
    with start_cluster(tmp_path / "logs", nodes=2, num_cpus=2) as cluster:

        def omniloom(*arguments: str) -> str:
            done = subprocess.run(
                [*OMNILOOM, *arguments, "--address", cluster.dashboard],
                cwd=ROOT,
                text=True,
                env={**os.environ, **cluster.env},
                capture_output=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            assert not done.stderr.strip(), "Ray's own lines"
            return done.stdout

        submitted = omniloom("submit", str(prepared / "tiny.yaml"), f"storage={store}", "--until", "train", "--no-wait")
        job = submitted.split()[1]
        assert submitted.splitlines()[0] == f"job {job}", "the first line is ours"
        deadline = time.monotonic() + 200
        while not list(store.glob("work/train/*/state/checkpoints/*.json")):
            assert time.monotonic() < deadline, omniloom("logs", job)
            time.sleep(0.5)
        running = json.loads(omniloom("jobs", "--json"))[0]
        assert (running["id"], running["pipeline"], running["status"]) == (job, "tiny", "RUNNING")
        assert running["progress"].startswith("train: ")
        assert omniloom("stop", job).strip() == f"job {job}: stopped"
        log = omniloom("logs", job)
    assert log.strip().splitlines()[-1] == LINE and not [trace for trace in TRACES if trace in log], log
    records = [json.loads(path.read_text()) for path in store.glob("runs/*.json")]
    (record,) = [found for found in records if "train" in found["stages"]]
    assert record["status"] == "killed"
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as database:
        assert dict(database.execute("select name, status from runs order by start_time"))["train"] == "KILLED"
