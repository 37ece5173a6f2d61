"""A rank on CPUs keeps its steps' memory from one step to the next."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from omniloom.infra.training.heap import KEEPS_FREED

_RANK = """
import json, resource, threading
import torch

faults = []

def step():
    return [torch.ones(count << 20) for count in (12, 1, 1, 1, 1, 12)]  # of 4 bytes each

def steps():
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        step()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

rank = threading.Thread(target=steps)  # as Ray Train runs it
rank.start()
rank.join()
print(json.dumps(faults[-3:]))
"""
_PAGES = (28 << 22) // 4096  # of a step


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's heap has no such settings")
def test_a_step_gets_the_pages_of_the_step_before():
    assert max(faults_of_steps(KEEPS_FREED)) < _PAGES // 100
    assert min(faults_of_steps({})) > _PAGES // 2


def faults_of_steps(variables: dict[str, str]) -> list[int]:
    """Of the last steps, in a process that has these variables."""
    result = subprocess.run(
        [sys.executable, "-c", _RANK], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])
