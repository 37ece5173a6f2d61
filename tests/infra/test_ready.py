"""Processes that wait for a training: what they have imported, whose environment they have, and that ranks get them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from omniloom.infra.training import ready
from omniloom.infra.training.config import WorkersConfig

_PROCESS = """
import sys
from omniloom.infra.training import ready
ready.prepare()
print(*[name in sys.modules for name in ("ray.train.torch", "deepspeed", "mlflow", "torch._dynamo", "antigravity")])
"""


def prepared(**variables: str) -> list[str]:
    """What such a process has imported, by the names above."""
    result = subprocess.run(
        [sys.executable, "-c", _PROCESS], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return result.stdout.split()


def test_a_rank_without_a_gpu_finds_deepspeed_imported_and_neither_mlflow_nor_the_compiler():
    assert prepared(OMNILOOM_RANK_GPUS="0") == ["True", "True", "False", "False", "False"]


def test_deepspeed_looks_for_gpus_only_once_the_rank_has_its_own():
    assert prepared(OMNILOOM_RANK_GPUS="1") == ["True", "False", "False", "False", "False"]


@pytest.mark.parametrize(
    ("resources", "workers", "room"),
    [
        ({"CPU": 8.0}, {"cpus": 2}, 4),
        ({"CPU": 8.0, "GPU": 3.0}, {"cpus": 2, "gpus": 1}, 3),
        ({"CPU": 8.0}, {"gpus": 1}, 0),
        ({"CPU": 1.0}, {"cpus": 2}, 0),
    ],
)
def test_a_node_is_asked_for_no_more_than_it_has_room_for(resources, workers, room):
    assert ready._room(resources, WorkersConfig(**workers)) == room


def test_ray_train_looks_at_many_ranks_less_often():
    times = [float(ready.settings(WorkersConfig(count=count))[ready._POLL]) for count in (1, 2, 64, 512)]
    assert times == [0.5, 0.5, 1.0, 2.0]


@pytest.mark.slow
def test_ranks_get_the_processes_that_wait(tmp_path):
    """With the job's variables, in a Ray of its own; what a rank finds is what it would find in a new process."""
    result = subprocess.run(
        [sys.executable, "-c", _TRAINING, str(tmp_path)], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-2000:]
    cold, warm = (json.loads(line) for line in result.stdout.splitlines()[-2:])
    assert len(cold) == len(warm) == 2
    assert all(rank["age"] < 0 for rank in cold)  # started for the training
    assert all(rank["age"] > 0 for rank in warm)  # started before it
    assert all(rank["imported"] and rank["variable"] == "told" for rank in cold + warm)
    assert not {rank["pid"] for rank in cold} & {rank["pid"] for rank in warm}


_TRAINING = """
import glob, json, os, sys, time
from types import SimpleNamespace
from omniloom.infra import cluster, storage
from omniloom.infra.progress import Progress
from omniloom.infra.training import launch, ready
from omniloom.infra.training.config import WorkersConfig

folder, workers = sys.argv[1], WorkersConfig(count=2)

def rank(job):
    import os, psutil, sys, time
    here = psutil.Process()
    seen = {
        "pid": here.pid,
        "age": job.began - here.create_time(),
        "imported": "deepspeed" in sys.modules,
        "variable": os.environ.get("JOB_VARIABLE"),
    }
    storage.write_json(storage.join(job.state, f"rank-{here.pid}.json"), seen)

class Quiet:
    def close(self): ...

def train(name):
    state = f"{folder}/{name}"
    job = SimpleNamespace(state=state, progress=Progress(name), tracker=Quiet(), began=time.time())
    launch.launch(rank, job, workers, name, state)
    return [json.load(open(file)) for file in glob.glob(f"{state}/rank-*.json")]

connected = cluster.connect("local", num_cpus=2, env={"JOB_VARIABLE": "told"}, log_to_driver=False)
import ray
body = ray.remote(train).options(num_cpus=0)
cold = ray.get(body.remote("cold"))
assert ray.get(ray.remote(ready.start).options(num_cpus=0).remote(workers)) == 2
time.sleep(5)
warm = ray.get(body.remote("warm"))
print(json.dumps(cold)); print(json.dumps(warm))
"""
