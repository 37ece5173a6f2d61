"""Stages' bodies in processes of their own, on a real Ray: which of their ends is followed by another try."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from omniloom.infra import cluster
from omniloom.infra.progress import Progress, start_board
from omniloom.infra.training import hangs
from omniloom.pipelines.bodies import Bodies, BodyLost

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def connected():
    yield cluster.connect("local", num_cpus=2, object_store_bytes=100 << 20, log_to_driver=False)
    cluster.shutdown()


class Tries:
    """A stage whose body does `does(try, state, progress)`, counted from 0; so many failures in a row are allowed."""

    def __init__(self, connected, folder: Path, does, restarts: int = 2, grace: float = 0.0):
        self.folder, self.notes = folder, []
        state, count = str(folder / "state"), str(folder / "tries")
        os.makedirs(state)

        def run(context):
            with open(count, "a") as file:
                file.write(".")
            does(len(open(count).read()) - 1, state, context.progress)
            return {"done": 1}

        needs = SimpleNamespace(cpus=0, gpus=0)
        stage = SimpleNamespace(
            run=run, needs=lambda config: needs, restarts=lambda config: restarts, grace=lambda config: grace
        )
        self.planned = SimpleNamespace(name="data", stage=stage, config=None)
        self.board = start_board()
        tracker = SimpleNamespace(close=lambda *seconds: None, log_text=lambda *text: None)
        self.context = SimpleNamespace(state=state, progress=Progress("data", self.board), tracker=tracker)
        self.bodies = Bodies(connected, self.notes.append, self.board, lambda: None)

    def run(self) -> dict:
        return self.bodies.run(self.planned, self.context)

    @property
    def count(self) -> int:
        return len((self.folder / "tries").read_text())


def test_a_killed_body_goes_on(connected, tmp_path):
    def dies_twice(number, state, progress):
        if number < 2:
            os.kill(os.getpid(), signal.SIGKILL)

    tries = Tries(connected, tmp_path, dies_twice)
    assert tries.run() == {"done": 1} and tries.count == 3
    assert ["restart 1 of 2" in tries.notes[0], "restart 2 of 2" in tries.notes[1]] == [True, True]


def test_a_training_that_is_told_to_end_keeps_what_is_done_and_goes_on(connected, tmp_path):
    def told_once(number, state, progress):
        assert progress.is_to_stop() is None
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            while not (who := progress.is_to_stop()):  # what its ranks ask
                time.sleep(0.05)
            Path(state, "step-1.json").write_text(who)
            raise RuntimeError("they have ended")

    tries = Tries(connected, tmp_path, told_once, restarts=0, grace=30.0)
    began = time.monotonic()
    with pytest.raises(BodyLost):
        tries.run()
    assert tries.count == 1 and time.monotonic() - began < 20
    assert Path(tmp_path, "state", "step-1.json").read_text() == "a signal to the stage's process"
    tries = Tries(connected, tmp_path / "again", told_once, restarts=1, grace=30.0)
    assert tries.run() == {"done": 1} and tries.count == 2
    assert "it goes on in another process (restart 1 of 1)" in tries.notes[-1]


def test_a_training_that_does_not_end_when_told_is_ended(connected, tmp_path):
    def deaf_once(number, state, progress):
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(300)

    tries = Tries(connected, tmp_path, deaf_once, restarts=1, grace=1.0)
    began = time.monotonic()
    assert tries.run() == {"done": 1} and tries.count == 2 and time.monotonic() - began < 60


def test_progress_allows_more(connected, tmp_path):
    def dies_after_each_shard(number, state, progress):
        Path(state, f"{number}.json").write_text("{}")
        if number < 4:
            os.kill(os.getpid(), signal.SIGKILL)

    tries = Tries(connected, tmp_path, dies_after_each_shard, restarts=1)
    assert tries.run() == {"done": 1} and tries.count == 5


def test_a_body_that_dies_at_the_same_place_ends_with_a_clear_word(connected, tmp_path):
    tries = Tries(connected, tmp_path, lambda number, state, progress: os.kill(os.getpid(), signal.SIGKILL), restarts=1)
    with pytest.raises(BodyLost, match="died 2 times in a row without progress.*was killed.*the next run goes on"):
        tries.run()
    assert tries.count == 2


def test_a_storage_that_is_away_is_tried_again_and_a_wrong_file_is_not(connected, tmp_path):
    def away_once(number, state, progress):
        if number == 0:
            raise ConnectionResetError(104, "Connection reset by peer")
        raise ValueError("no PNG")

    tries = Tries(connected, tmp_path, away_once)
    with pytest.raises(Exception, match="ValueError: no PNG"):
        tries.run()
    assert tries.count == 2 and "Connection reset" in tries.notes[0]


HANGS = """
import sys, time
from types import SimpleNamespace
from omniloom.infra.progress import Progress, ProgressBoard
from omniloom.pipelines import bodies
bodies.HANG_SECONDS = 1.0
board = ProgressBoard()
def run(context):
    for shard in range(8):
        context.progress(shard, 9, "shards")
        time.sleep(0.02)
    waits_for_a_shard_that_never_comes()
def waits_for_a_shard_that_never_comes():
    time.sleep(600)
def say(text, file=""): print(file, text, flush=True)
def close(seconds): print(board.read()["data"]["notes"][0], flush=True)
context = SimpleNamespace(progress=Progress("data", board), tracker=SimpleNamespace(log_text=say, close=close))
bodies.run_stage(SimpleNamespace(run=run), context)
"""


def test_a_body_that_hangs_is_ended_by_the_rhythm_of_its_shards():
    """Its process ends as one that was killed, after its last words; what follows is said above."""
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120)
    assert done.returncode == hangs.EXIT, done.stderr
    assert "hangs/body.txt no progress for " in done.stdout and "waits_for_a_shard_that_never_comes" in done.stdout
    assert done.stdout.strip().splitlines()[-1].endswith("its process is ended")
