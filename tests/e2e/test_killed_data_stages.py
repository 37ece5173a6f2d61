"""Data stages under Ray, killed with -9 at random moments, whole runs and single workers: the files are the same."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from omniloom.infra.artifacts import ArtifactStore
from omniloom.stages.data.media.decode import encode_png

pytestmark = pytest.mark.slow
OMNILOOM = [sys.executable, "-m", "omniloom.pipelines.cli"]
ROOT = Path(__file__).parents[2]
STAGES = ("ingest", "curate", "pretokenize")
KILLS = 5


def write_corpus(folder: Path) -> None:
    rng = np.random.default_rng(5)
    (folder / "pictures").mkdir(parents=True)
    for n in range(160):
        (folder / "pictures" / f"{n:03d}.png").write_bytes(encode_png(rng.integers(0, 256, (96, 96, 3), np.uint8)))
    words = [f"{a}{b}" for a in ("mar", "ten", "sol", "bri", "qua") for b in ("vin", "dor", "la", "sh", "tum", "ko")]
    lines = (json.dumps({"text": " ".join(rng.choice(words, 60))}) for _ in range(3000))
    (folder / "lines.jsonl").write_text("\n".join(lines))


def settings(folder: Path) -> dict:
    return {
        "name": "killed",
        "storage": str(folder / "store"),
        "tracking": {"system_metrics": False},
        "cluster": {"num_cpus": 3, "object_store_bytes": 200 << 20},
        "stages": {
            "ingest": {
                "sources": [
                    {"kind": "image_folder", "uri": str(folder / "pictures")},
                    {"kind": "jsonl", "uri": str(folder / "lines.jsonl"), "text_field": "text"},
                ],
                "shard_items": 60,
            },
            "curate": {"steps": [{"kind": "near_pictures"}, {"kind": "blur"}, {"kind": "near_texts"}]},
            "pretokenize": {"vocab_size": 600, "workers": 2},
        },
    }


class Run:
    """`omniloom run` of the pipeline until one stage, which alone is left to be made, in a process of its own."""

    def __init__(self, folder: Path, store: Path, stage: str):
        self.store, self.stage, self.log = store, stage, store.parent / "log"
        self._log, self.started = self.log.open("ab"), time.time()
        self.process = subprocess.Popen(
            [*OMNILOOM, "run", str(folder / "killed.yaml"), f"storage={store}", "--until", stage],
            cwd=ROOT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def has_begun(self) -> bool:
        """Whether this run, not one before, has written something for the stage: its body is about to begin."""
        for path in self.store.glob(f"work/{self.stage}/*/*/*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime > self.started:
                    return True
        return False

    def until(self, ready: Callable[[], bool], seconds: float = 150) -> bool:
        """False where the run came to its end before."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")
            time.sleep(0.02)
        return True

    def kill(self) -> None:
        """The driver, Ray and all workers, as the machine's end would."""
        for process in [*self.family(), self.process]:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                process.kill()
        self.process.wait()

    def kill_worker(self, draw: random.Random) -> bool:
        """One of Ray's processes that does something for the stage: its body, a task, an actor."""
        busy = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                name = " ".join(process.cmdline())
                busy += [process] if name.startswith("ray::") and "IDLE" not in name and "Agent" not in name else []
        if busy:
            with contextlib.suppress(psutil.Error):
                draw.choice(busy).kill()
                return True
        return False


def files(store: Path, stage: str) -> list[dict]:
    (made,) = ArtifactStore(str(store)).all(stage)
    return made.manifest["files"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_corpus(folder)
    (folder / "killed.yaml").write_text(yaml.safe_dump(settings(folder)))
    run = Run(folder, folder / "store", STAGES[-1])
    try:
        assert run.process.wait(170) == 0, run.log.read_text(errors="replace")
    finally:
        run.kill()
    return folder


def without(whole: Path, folder: Path, stage: str) -> Path:
    """A copy of the storage from before the stage was made."""
    shutil.copytree(whole / "store", folder / "store")
    for later in STAGES[STAGES.index(stage) :]:
        for place in ("artifacts", "work"):
            shutil.rmtree(folder / "store" / place / later, ignore_errors=True)
    return folder / "store"


def seconds(whole: Path, stage: str) -> float:
    """How long the undisturbed stage took."""
    (made,) = ArtifactStore(str(whole / "store")).all(stage)
    return made.manifest["times"]["seconds"]


def ends(whole: Path, store: Path, stage: str) -> None:
    run = Run(whole, store, stage)
    try:
        assert run.process.wait(150) == 0, run.log.read_text(errors="replace")
    finally:
        run.kill()
    assert files(store, stage) == files(whole / "store", stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_killed_as_a_whole_at_random_moments_ends_with_the_same_files(whole, tmp_path, stage):
    store, draw, kills = without(whole, tmp_path, stage), random.Random(stage), 0
    for _ in range(KILLS):
        run = Run(whole, store, stage)
        try:
            begun = run.until(run.has_begun)
            run.until(
                lambda until=time.monotonic() + draw.uniform(0, 0.5 * seconds(whole, stage)): time.monotonic() > until
            )
            kills += begun and run.process.poll() is None
        finally:
            run.kill()
        if any(store.glob(f"artifacts/{stage}/*/manifest.json")):  # it came to its end: again from the beginning
            shutil.rmtree(store / "artifacts" / stage)
    assert kills >= KILLS - 1
    ends(whole, store, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_workers_that_are_killed_at_random_moments_leave_the_same_files(whole, tmp_path, stage):
    store, draw, kills = without(whole, tmp_path, stage), random.Random(f"{stage} workers"), 0
    pause = seconds(whole, stage) / 4
    while kills < KILLS:
        run = Run(whole, store, stage)
        try:
            run.until(run.has_begun)
            while run.process.poll() is None and kills < KILLS:
                time.sleep(draw.uniform(0, pause))
                kills += run.kill_worker(draw)
            assert kills < KILLS or run.process.wait(150) in (0, 1)  # so many deaths may be more than a stage bears
        finally:
            run.kill()
        if kills < KILLS and any(store.glob(f"artifacts/{stage}/*/manifest.json")):
            shutil.rmtree(store / "artifacts" / stage)
    ends(whole, store, stage)
