"""Processes that wait for a training: what they have imported, whose environment they have, and that ranks get them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

from omniloom.infra.training import ready
from omniloom.infra.training.config import WorkersConfig

_PROCESS = """
import os, sys
from omniloom.infra.training import ready
ready.prepare()
print(*[name in sys.modules for name in ("ray.train.torch", "deepspeed", "mlflow", "torch._dynamo")], os.getcwd())
"""


def prepared(**variables: str) -> list[str]:
    """What such a process has imported, by the names above."""
    result = subprocess.run(
        [sys.executable, "-c", _PROCESS], env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return result.stdout.split()


def test_a_rank_without_a_gpu_finds_deepspeed_imported_and_neither_mlflow_nor_the_compiler():
    assert prepared(OMNILOOM_RANK_GPUS="0") == ["True", "True", "False", "False", os.getcwd()]


def test_the_job_s_own_hook_runs_too():
    """A job of a cluster leaves the folder that it was unpacked into."""
    assert (
        prepared(OMNILOOM_RANK_GPUS="1", OMNILOOM_JOB_HOOK="omniloom.infra.cluster.settle")[-1] == tempfile.gettempdir()
    )


def test_deepspeed_looks_for_gpus_only_once_the_rank_has_its_own():
    assert prepared(OMNILOOM_RANK_GPUS="1") == ["True", "False", "False", "False", os.getcwd()]


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


def test_the_job_s_hook_is_kept_for_the_body_and_for_its_ranks(monkeypatch):
    """What the driver asks for is what the body's own request comes to."""
    hook, workers = ready._hook(), WorkersConfig()
    job = {"env_vars": {hook: "omniloom.infra.cluster.settle", "JOB_VARIABLE": "told"}}
    monkeypatch.setattr(ready, "_own", lambda: job)
    body, ranks = ready._of_body()["env_vars"], ready._of_ranks(workers)["env_vars"]
    monkeypatch.setattr(ready, "_own", lambda: {"env_vars": body})
    assert ranks == body | ready.environment(workers)["env_vars"]
    assert [found[hook].rpartition(".")[2] for found in (body, ranks)] == ["prepare_body", "prepare"]
    for found in (body, ranks):
        assert found[ready._JOB_HOOK] == "omniloom.infra.cluster.settle" and found["JOB_VARIABLE"] == "told"


@pytest.mark.parametrize("job", [{}, {"env_vars": {"JOB_VARIABLE": "told"}}], ids=["plain", "merged"])
def test_an_environment_has_ray_s_own_text(monkeypatch, job):
    """As Ray's Python writes one, and without spaces where its C++ has merged it with another."""
    monkeypatch.setattr(ready, "_own", lambda: job)
    text = ready._told(ready._of_body(), job).serialized_runtime_env
    assert (": " in text) == (not job) and json.loads(text) == ready._of_body()


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["told", ""], ids=["with variables of the job", "without"])
def test_body_and_ranks_get_the_processes_that_wait(tmp_path, variable):
    """In a Ray of its own. Where a rank of theirs is killed, the group starts again in new processes, which have the
    same imports and variables. Ray Train starts no other process, but one that the first training of a Ray needs."""
    result = subprocess.run(
        [sys.executable, "-c", _TRAINING, str(tmp_path), variable], capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-2000:]
    cold, warm = (json.loads(line) for line in result.stdout.splitlines()[-2:])
    assert not cold["body"] and warm["body"]  # whether it was there before it was asked for
    assert [rank["age"] > 0 for rank in cold["ranks"]] == [False, False]
    assert [rank["age"] > 0 for rank in warm["ranks"]] == [True, True, False, False]  # the last after the kill
    ranks = cold["ranks"] + warm["ranks"]
    assert all(rank["imported"] and rank["variable"] == variable for rank in ranks)
    assert len({rank["pid"] for rank in ranks}) == 6
    started = [{name for rank in found["ranks"] for name in rank["started"]} for found in (cold, warm)]
    ours = ("ray::RayTrainWorker", "ray::IDLE", "ray::train", "ray::execute")
    others = [{name for name in names if not name.startswith(ours)} for names in started]
    assert all(name.startswith("ray::_AutoscalingCoordinator") for name in others[0]) and not others[1], others


_TRAINING = """
import glob, json, os, sys, time
from types import SimpleNamespace
from omniloom.infra import cluster, storage
from omniloom.infra.progress import Progress
from omniloom.infra.training import launch, ready
from omniloom.infra.training.config import WorkersConfig

folder, variable, workers = sys.argv[1], sys.argv[2], WorkersConfig(count=2)

def rank(job):
    import os, psutil, signal, sys, time
    import torch.distributed as dist
    here = psutil.Process()
    seen = {
        "pid": here.pid,
        "began": here.create_time(),
        "age": job.began - here.create_time(),
        "imported": "deepspeed" in sys.modules,
        "variable": os.environ.get("JOB_VARIABLE", ""),
        "started": [p.name() for p in here.parent().children() if p.create_time() > job.began],
    }
    killed = storage.join(job.state, "killed")
    first = not storage.exists(killed)
    storage.write_json(storage.join(job.state, f"rank-{here.pid}.json"), seen)
    dist.barrier()
    if job.kills and first and dist.get_rank() == 1:
        storage.write_bytes(killed, b"")
        os.kill(here.pid, signal.SIGKILL)
    dist.barrier()

class Quiet:
    def close(self): ...

def train(name, began, kills=False):
    import psutil
    state = f"{folder}/{name}"
    job = SimpleNamespace(state=state, progress=Progress(name), tracker=Quiet(), began=began, kills=kills)
    launch.launch(rank, job, workers, name, state)
    ranks = [json.load(open(file)) for file in glob.glob(f"{state}/rank-*.json")]
    there = psutil.Process().create_time() < began - 5  # its clock goes by whole seconds
    return {"body": there, "ranks": sorted(ranks, key=lambda rank: rank["began"])}

env = {"JOB_VARIABLE": variable} if variable else None
connected = cluster.connect("local", num_cpus=2, env=env, log_to_driver=False)
import ray
def body(*arguments, **named):
    task = ray.remote(train).options(num_cpus=0, runtime_env=ready.body_environment())
    return ray.get(task.remote(*arguments, time.time(), **named))
cold = body("cold")
assert ready.start(workers) == 2
time.sleep(25)
warm = body("warm", kills=True)
print(json.dumps(cold)); print(json.dumps(warm))
"""
