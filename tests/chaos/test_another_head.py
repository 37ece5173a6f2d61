"""Another head of a Ray cluster, on three real nodes, in the place of the one that a run began under."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

import disturbed  # noqa: E402
from nodes import Nodes  # noqa: E402

from omniloom.infra.training.checkpoint import newest_step  # noqa: E402

pytestmark = pytest.mark.slow
OMNILOOM = [sys.executable, "-m", "omniloom.pipelines.cli"]
LIMIT = 400.0


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
