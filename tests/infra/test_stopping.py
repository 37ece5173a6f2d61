"""Ranks that are asked to end at different moments end after the same step, and what is not logged yet goes on."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys

import pytest

from omniloom.infra.progress import Progress, ProgressBoard
from omniloom.infra.training import stopping

RANKS = 3
CODE = """
import sys, time
import torch.distributed as dist
from omniloom.infra.training import stopping
from omniloom.infra.training.agreement import Agreement
dist.init_process_group("gloo")
rank, agreement = dist.get_rank(), Agreement()
for step in range(20):
    time.sleep(0.002 * rank)  # they do not run in step
    if (rank, step) in ((2, 7), (1, 9)):
        stopping.ask("a signal")
    if agreement.after_step():
        break
agreement.close()
print(f"rank {rank} {step} {stopping.asked()}")
dist.destroy_process_group()
"""


def test_ranks_agree_on_the_step():
    """Rank 2 hears of it in step 7: all end after step 8, which is the one that ran."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    base = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(RANKS)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", CODE], env={**base, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(RANKS)
    ]
    told = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    assert told == ["rank 0 8 None", "rank 1 8 None", "rank 2 8 a signal"]


def test_the_first_reason_stays():
    stopping.clear()
    assert stopping.asked() is None
    stopping.ask("a signal")
    stopping.ask("the driver")
    assert stopping.asked() == "a signal"
    stopping.clear()
    assert stopping.asked() is None


def test_the_drivers_wish_reaches_the_stages_workers_alone():
    board = ProgressBoard()
    trains, other = Progress("train", board), Progress("ingest", board)
    assert not trains.is_to_stop() and not Progress("train").is_to_stop()
    board.ask_to_stop(["train"])
    assert trains.is_to_stop() and not other.is_to_stop()


def test_notes_of_several_processes_are_all_kept():
    board = ProgressBoard()
    body, rank = Progress("train", board), Progress("train", board)
    for progress, text in ((body, "starting"), (rank, "damaged"), (body, "again")):
        progress.note(text)
    assert board.read() == {"train": {"notes": ["starting", "damaged", "again"], "validations": []}}


@pytest.mark.parametrize("board", [None, ProgressBoard()])
def test_more_done_than_before_is_heard(board):
    heard: list[int] = []
    progress = Progress("ingest", board)
    with progress.heard_by(lambda: heard.append(1)):
        for done in (0, 1, 1, 3, 2):
            progress(done, 4, "shards")
    progress(4, 4, "shards")
    assert len(heard) == 2


def test_a_clock_that_is_set_hides_no_progress(monkeypatch):
    board = ProgressBoard()
    elsewhere = Progress("train")
    elsewhere._last = 1e9  # on a machine that is up for long
    progress = pickle.loads(pickle.dumps(elsewhere))
    progress.board = board
    monkeypatch.setattr("time.time", iter([90000.0, 3600.0, 3600.0, 3600.0]).__next__)
    for done, seconds in ((1, 0.0), (2, 10.0)):  # ten seconds later the clock shows a day before
        monkeypatch.setattr("time.monotonic", lambda seconds=seconds: 50.0 + seconds)
        progress(done, 9, "steps")
    assert board.read()["train"]["done"] == 2 and board.read()["train"]["time"] == 60.0
