"""CPUs, GPUs and memory that a machine lacks: told by doctor and by a local run, before Ray starts."""

from __future__ import annotations

import os
import sys

import pytest

from omniloom.infra.errors import InputError
from omniloom.pipelines import room, sizing
from omniloom.pipelines.config import load
from omniloom.pipelines.display import Display
from omniloom.pipelines.doctor import examine
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.room import Room
from omniloom.pipelines.runner import run

ALL = ("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize", "train", "evaluate")


def missing(place: Room, *overrides: str, memory=None) -> list[tuple[str, str]]:
    config = load("demo", ["storage=/nowhere", *overrides])
    return [(error.field, error.message) for error in room.missing(config, ALL, place, memory or {})]


def test_what_is_asked_for_is_held_against_what_is_there():
    assert missing(Room("this machine", cpus=2, gpus=0)) == []
    gpus = ("stages.train.workers.gpus=1", "stages.pretokenize.gpus=0.5")
    assert missing(Room("the cluster", 2, 1), *gpus) == [
        ("stages.train.workers.gpus", "missing: 1 GPU: it needs 2, the cluster has 1")
    ]
    assert missing(Room("the cluster", 2, 2), *gpus) == []
    assert missing(Room("this machine", 2, 0), *gpus) == [
        ("stages.pretokenize.gpus", "missing: 0.5 GPUs: it needs 0.5, this machine has 0"),
        ("stages.train.workers.gpus", "missing: 2 GPUs: it needs 2, this machine has 0"),
    ]
    assert missing(Room("this machine", 1, 0), "stages.evaluate.cpus=1") == [
        (f"stages.{name}.workers.cpus", "missing: 1 CPU: it needs 2, this machine has 1")
        for name in ("tokenizer_image", "tokenizer_joint", "train")
    ]


def test_memory_is_that_of_all_workers_here_and_of_one_on_a_gpu():
    size = {"train": {"workers": 2, "memory_per_worker_bytes": 3 << 30}}
    assert missing(Room("this machine", 2, 0, memory=6 << 30), memory=size) == []
    assert missing(Room("this machine", 2, 0, memory=5 << 30), memory=size) == [
        ("stages.train.workers", "missing: 1.0 GiB of memory: 2 workers need 6.0 GiB, this machine has 5.0 GiB")
    ]
    on_gpus = "stages.train.workers.gpus=1"
    assert missing(Room("this machine", 2, 2, 5 << 30, gpu_memory=3 << 30), on_gpus, memory=size) == []
    assert missing(Room("this machine", 2, 2, 5 << 30, gpu_memory=2 << 30), on_gpus, memory=size) == [
        ("stages.train.workers", "missing: 1.0 GiB of memory: a worker needs 3.0 GiB, a GPU has 2.0 GiB")
    ]


def test_what_is_sure_to_be_needed_is_part_of_the_whole():
    config = load("demo", ["storage=/nowhere"])
    least, whole = sizing.least(config)["train"], sizing.sizes(config)["train"]
    states = ("weights_bytes", "gradients_bytes", "optimizer_bytes", "ema_bytes")
    assert {name: least[name] for name in states} == {name: whole[name] for name in states}
    assert least["memory_per_worker_bytes"] == sum(least[name] for name in states) < whole["memory_per_worker_bytes"]


TOO_MUCH = {
    "stages.train.workers.gpus=100": ("stages.train.workers.gpus", "missing: 200 GPUs"),
    "stages.train.workers.cpus=1000": ("stages.train.workers.cpus", "CPUs: it needs 2000"),
    "stages.train.model={width: 65536, heads: 512, layers: 100}": ("stages.train.workers", "of memory: 2 workers need"),
}


@pytest.mark.parametrize("override", TOO_MUCH)
def test_doctor_and_a_local_run_refuse_what_this_machine_lacks(workspace, override, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    field, says = TOO_MUCH[override]
    overrides = workspace.overrides(override)
    lacking = {check["name"]: check for check in examine("demo", overrides)["checks"] if not check["ok"]}
    assert says in lacking[field]["says"] and lacking[field]["needed"]
    plan = make_plan(load("demo", overrides))  # on a cluster it may fit
    with pytest.raises(InputError, match="demo.yaml: stages.train.workers") as caught:
        run(plan, Display())
    assert caught.value.field == field and says in caught.value.message
    assert ("(from an override)" in caught.value.message) == (field != "stages.train.workers")
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    assert not os.path.exists(workspace.storage / "runs")


def test_doctor_says_that_this_machine_has_all(workspace):
    checks = {check["name"]: check for check in examine("demo", workspace.overrides())["checks"]}
    assert checks["room"]["ok"] and "this machine has" in checks["room"]["says"]


def test_doctor_asks_the_tracking_server(workspace):
    checks = {c["name"]: c for c in examine("demo", workspace.overrides("tracking.uri=http://127.0.0.1:1"))["checks"]}
    assert not checks["tracking"]["ok"] and "http://127.0.0.1:1" in checks["tracking"]["says"]


def test_doctor_is_told_that_no_cluster_answers(workspace, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    checks = {c["name"]: c for c in examine("demo", workspace.overrides("cluster.address=127.0.0.1:1"))["checks"]}
    assert not checks["cluster"]["ok"] and "cluster.address: no Ray cluster answers" in checks["cluster"]["says"]
