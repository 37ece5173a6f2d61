"""Ctrl-C, SIGTERM, SIGHUP: the first closes the run's records, the second ends at once; both say so."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

RUN = """
import signal, sys, time
from omniloom.pipelines import cli, signals
def execute(made, display):
    try:
        print("runs", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("closes", flush=True)
        time.sleep(seconds)
        print("closed", flush=True)
        raise
import omniloom.pipelines.runner
omniloom.pipelines.runner.run = execute
seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 0
sys.argv[1:] = ["run", "demo"]
cli.main()
"""
LINE = "interrupted; the next run goes on from here"


def none_ignored() -> None:
    """Whoever runs the tests in the background has SIGINT ignored, or with nohup SIGHUP, which processes inherit."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(*arguments: str, **options) -> subprocess.Popen:
    options = {"stderr": subprocess.PIPE, "preexec_fn": none_ignored, **options}
    process = subprocess.Popen([sys.executable, "-c", RUN, *arguments], stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout.readline() == "runs\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal(number):
    process = start()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "closes\nclosed\n")
    assert err.strip().splitlines() == ["again:  omniloom run demo", LINE]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_two_signals(second):
    process = start("60")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "closes\n"
    time.sleep(0.7)
    process.send_signal(second)
    began = time.monotonic()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - began < 5
    assert (process.returncode, out) == (130, "") and err.strip().splitlines() == [LINE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_request_by_two_signals(number):
    """As `timeout` makes it: to the command, and to its group at once. The run closes in peace."""
    process = start("1")
    process.send_signal(number)
    assert process.stdout.readline() == "closes\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "closed\n")
    assert err.strip().splitlines() == ["again:  omniloom run demo", LINE]


def test_a_signal_that_is_ignored_stays_so():
    """nohup."""
    process = start(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_a_terminal_that_is_closed():
    """What is printed afterwards has nowhere to go, and must not keep the run from closing its records."""
    master, slave = pty.openpty()
    process = start(stderr=slave, stdin=slave)
    os.close(slave)
    os.close(master)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "closes\nclosed\n")
