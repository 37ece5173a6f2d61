"""A rank that is stopped before its function begins: the others cannot notice, as they do not train yet."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

_TRAINING = """
import json, os, signal, sys, time
from types import SimpleNamespace
from omniloom.infra import cluster
from omniloom.infra.progress import Progress
from omniloom.infra.training import launch, ready
from omniloom.infra.training.config import WorkersConfig

folder, patience = sys.argv[1], launch._START_SECONDS

class StopsTheFirst:
    '''Read by a rank as a part of its function, in the main thread.'''
    def __reduce__(self):
        return stop, (f"{folder}/stopped",)

def stop(file):
    try:
        with open(file, "x") as found:
            found.write(str(os.getpid()))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGSTOP)

class Told(Progress):
    def note(self, text):
        launch._START_SECONDS = patience
        open(f"{folder}/notes", "a").write(text + "\\n")

class Quiet:
    def close(self): ...

def rank(job):
    import torch.distributed as dist
    dist.barrier()
    open(f"{folder}/rank-{dist.get_rank()}", "x").close()

def train():
    launch._START_SECONDS = 45.0  # in which processes import, too
    job = SimpleNamespace(state=f"{folder}/state", progress=Told("train"), tracker=Quiet(), part=StopsTheFirst())
    launch.launch(rank, job, WorkersConfig(count=2, hang_seconds=5), "train", f"{folder}/work")

cluster.connect("local", num_cpus=2, log_to_driver=False)
import ray
began = time.monotonic()
ray.get(ray.remote(train).options(num_cpus=0, runtime_env=ready.body_environment()).remote())
print(json.dumps(time.monotonic() - began))
print(json.dumps([node["Alive"] and ray.available_resources().get("CPU") for node in ray.nodes()]))
"""


@pytest.mark.slow
def test_a_rank_that_is_stopped_before_its_function_begins_has_the_group_start_again(tmp_path):
    done = subprocess.run([sys.executable, "-c", _TRAINING, str(tmp_path)], capture_output=True, text=True, timeout=220)
    assert done.returncode == 0, done.stderr[-2000:]
    (note,) = (tmp_path / "notes").read_text().splitlines()
    assert note.startswith("a worker process did not answer for long") and "restart 1 of 3" in note
    assert json.loads(done.stdout.splitlines()[-2]) < 160
    assert sorted(path.name for path in tmp_path.glob("rank-*")) == ["rank-0", "rank-1"]
    assert not psutil.pid_exists(int((tmp_path / "stopped").read_text()))
