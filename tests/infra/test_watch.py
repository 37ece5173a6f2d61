"""A rank that hangs: what its rhythm allows, what stopped clocks count for, and what is known of it afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniloom.infra import owner, storage
from omniloom.infra.training import hangs
from omniloom.infra.training.rhythm import Rhythm
from omniloom.infra.training.watch import Watch, stacks


def learnt(least: float, *seconds: float, kind: str = "") -> Rhythm:
    rhythm = Rhythm(least)
    for value in seconds:
        rhythm.learn(kind, value)
    return rhythm


def test_nothing_is_judged_before_its_rhythm_is_known():
    assert learnt(1.0).limit("") is None
    assert learnt(1.0, 30.0, 1, 1, 1, 1).limit("") is None, "the first compiles, and four are too few"
    assert learnt(1.0, 3.0, 1, 1, 1, 1, 1).limit("") == 10.0
    assert learnt(1.0, 3.0, 1, 1, 1, 1, 1).limit("validation") is None


@pytest.mark.parametrize(
    "least, seconds, limit",
    [
        (60.0, [0.1] * 9, 60.0),  # no shorter silence counts
        (1.0, [2.0, *[1.0] * 5], 10.0),  # ten medians
        (1.0, [2.0, 1.0, 1.0, 1.0, 1.0, 8.0], 24.0),  # three times the longest
        (1.0, [90.0, *[1.0] * 5], 180.0),  # twice the first, which compiled: another shape may
    ],
)
def test_what_a_step_may_last(least, seconds, limit):
    assert learnt(least, *seconds).limit("") == limit


def test_what_long_ago_was_slow_is_forgotten():
    rhythm = learnt(1.0, 1.0, 100.0, *[1.0] * 49)
    assert rhythm.limit("") == 300.0
    rhythm.learn("", 1.0)
    assert rhythm.limit("") == 10.0


def test_a_validation_has_a_rhythm_of_its_own():
    rhythm = learnt(1.0, 1.0, *[1.0] * 5)
    rhythm.learn("validation", 40.0)
    assert rhythm.limit("validation") == 400.0 and rhythm.limit("") == 10.0
    assert rhythm.limit("checkpoint+validation") is None


def test_a_checkpoint_may_wait_for_the_storage_of_the_one_before():
    rhythm = learnt(1.0, 1.0, *[1.0] * 5)
    rhythm.learn("checkpoint", 0.1)
    assert rhythm.limit("checkpoint") == 600.0


@given(st.lists(st.floats(0.01, 100.0), min_size=6, max_size=60), st.floats(0.5, 60.0))
def test_a_rhythm_that_goes_on_is_never_a_hang(seconds, least):
    """A step as long as any of the recent ones, or twice as long as the first, is allowed."""
    limit = learnt(least, *seconds).limit("")
    assert limit >= max(seconds[1:][-50:]) and limit >= 2 * seconds[0] and limit >= least


class Hung:
    """A watch whose seconds the test counts; what it says of a hang."""

    def __init__(self, least: float = 5.0):
        self.found: list[tuple[float, float]] = []
        self.watch = Watch(learnt(least, 0.1, *[0.1] * 5), lambda *facts: self.found.append(facts))


def test_seconds_add_up_to_the_limit_and_a_beat_begins_anew():
    watch = Hung().watch
    assert [watch.passed(1.0) for _ in range(5)] == [None] * 5
    assert watch.passed(1.0) == (6.0, 5.0)
    watch.beat()
    assert watch.passed(1.0) is None


def test_what_the_process_slept_through_is_not_the_works():
    watch = Hung().watch
    assert watch.passed(600.0) is None, "stopped for ten minutes: one look"
    assert watch._seen == 1.0


def test_the_present_stretch_is_of_what_it_has_entered():
    watch = Hung().watch
    watch.enters("checkpoint")
    assert [watch.passed(1.0) for _ in range(100)] == [None] * 100
    watch.beat()
    assert [watch.passed(1.0) is None for _ in range(6)] == [True] * 5 + [False]


def test_the_thread_tells_once():
    hung = Hung(0.2)
    hung.watch._interval = 0.02
    with hung.watch:
        deadline = time.monotonic() + 20
        while not hung.found and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
    assert len(hung.found) == 1 and hung.found[0][0] > hung.found[0][1] == pytest.approx(1.0)


def test_stacks_tell_where_each_thread_is_the_training_one_first():
    waiting, ready = threading.Event(), threading.Event()

    def reads_for_ever():
        ready.set()
        waiting.wait()

    thread = threading.Thread(target=reads_for_ever, name="loader")
    thread.start()
    ready.wait()
    try:
        text, place = stacks(thread.ident)
    finally:
        waiting.set()
        thread.join()
    assert text.startswith("thread loader\n") and "reads_for_ever" in text.split("thread ")[1]
    assert f"{os.path.basename(__file__)}:" in text and "\nthread MainThread\n" in text
    assert "wait" in place


RANK = """
import os, sys, threading, time
from omniloom.infra import owner
from omniloom.infra.training import hangs
hangs._WAIT_SECONDS = 600.0  # nobody waits for what is known to be stopped
state, other = sys.argv[1:]
def waits_for_the_other(): hangs.end_rank(state, 7, 0, [owner.this_process(), other], threading.get_ident(), 90.0, 60.0)
waits_for_the_other()
"""
STOPPED = """
import time
def reads_what_never_comes():
    print("ready", flush=True)
    while True: time.sleep(0.1)
reads_what_never_comes()
"""


def test_a_stopped_rank_is_asked_from_outside_and_named_first(tmp_path):
    """Real processes: rank 1 is stopped and can say nothing; rank 0 tells for both, and ends both."""
    state = str(tmp_path)
    stopped = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, text=True)
    try:
        assert stopped.stdout.readline() == "ready\n"
        stat = open(f"/proc/{stopped.pid}/stat").read().rpartition(")")[2].split()[19]
        mine = owner.this_process().split(":")
        other = ":".join([mine[0], str(stopped.pid), stat, *mine[3:]])
        assert owner.lives(other)
        stopped.send_signal(signal.SIGSTOP)
        rank = subprocess.run([sys.executable, "-c", RANK, state, other], capture_output=True, text=True, timeout=60)
        assert stopped.wait(10) == -signal.SIGKILL
    finally:
        stopped.kill()
        stopped.wait()
    assert rank.returncode == hangs.EXIT and "waits_for_the_other" in rank.stderr, rank.stderr
    line, text, step = hangs.read(state)
    assert step == 7 and "over 90 s" in line and "at most 60 s" in line
    assert "rank 1 at does not answer, asked from outside" in line
    assert "reads_what_never_comes" in text and "waits_for_the_other" in text
    hangs.clear(state)
    assert hangs.read(state) is None


def test_the_rank_that_stands_elsewhere_is_told_first(tmp_path):
    for rank, place in enumerate(["all_reduce (x.py:1)"] * 2 + ["read (files.py:3)"] + ["all_reduce (x.py:1)"] * 9):
        report = {
            "rank": rank,
            "ranks": 12,
            "step": 3,
            "seconds": 61.0,
            "limit": 60.0,
            "place": place,
            "stacks": f"thread {rank}\n",
        }
        storage.write_json(storage.join(str(tmp_path), "hangs", f"rank-{rank:05d}.json"), report)
    line, text, _ = hangs.read(str(tmp_path))
    assert line.index("rank 2 at read") < line.index("ranks 0, 1, 3, 4, 5, 6, 7, 8 and 3 more at all_reduce")
    assert text.count("=== rank") == 12


def test_a_report_that_was_cut_hides_no_other(tmp_path):
    report = {"rank": 1, "ranks": 2, "step": 3, "seconds": 61.0, "limit": 60.0, "place": "here", "stacks": ""}
    folder = tmp_path / "hangs"
    folder.mkdir()
    (folder / "rank-00000.json").write_text(json.dumps(report)[:20])
    (folder / "rank-00001.json").write_text(json.dumps(report))
    line, _, _ = hangs.read(str(tmp_path))
    assert "rank 1 at here" in line and "rank 0 at no stack" in line


def test_a_process_that_is_gone_has_no_stack():
    gone = subprocess.Popen([sys.executable, "-c", textwrap.dedent("pass")])
    gone.wait()
    assert hangs.spy(gone.pid).startswith("no stack: ")
