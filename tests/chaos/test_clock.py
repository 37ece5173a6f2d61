"""A wall clock that is set while a run waits for Ray: the wait lasts as long as it was asked to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]

import world  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not shutil.which("cc"), reason="the clock is compiled with cc")]

# The clock is ahead while a wait begins, and set right within it.
_WAITS = """
import os, struct, sys, threading, time
from omniloom.infra import cluster
from omniloom.infra.waiting import answer, settled

def ahead(hours):
    with open(sys.argv[1], "r+b") as file:
        file.write(struct.pack("d", 3600.0 * hours))

cluster.connect("local", num_cpus=2, log_to_driver=False)
import ray
endless = ray.remote(lambda: time.sleep(1000)).options(num_cpus=1).remote()
for wait in (lambda: settled([endless], 2.0)[1] == [endless], lambda: answer(endless, 2.0)):
    began = time.monotonic()
    ahead(26)
    threading.Timer(0.5, ahead, [0]).start()
    try:
        assert wait()
    except TimeoutError:
        pass
    print(time.monotonic() - began, flush=True)
assert settled([ray.put(1), endless], 0.5)[1] == [endless]
os._exit(0)
"""


def test_no_clock_that_is_set_lengthens_a_wait(tmp_path):
    library, clock = world.clock_library(tmp_path), tmp_path / "clock"
    clock.write_bytes(bytes(8))
    env = os.environ | {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(clock)}
    told = subprocess.run(
        [sys.executable, "-c", _WAITS, str(clock)], env=env, stdout=subprocess.PIPE, text=True, timeout=120, check=True
    )
    times = [float(line) for line in told.stdout.split()]
    assert len(times) == 2 and all(1.9 < seconds < 6 for seconds in times)
