"""CPUs, GPUs and memory that a machine lacks: told by doctor and by a local run, before Ray starts."""

from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
import torch
from cluster_fixture import start_cluster

from omniloom.infra import nodes
from omniloom.infra.cluster import ClusterConfig
from omniloom.infra.errors import InputError
from omniloom.infra.nodes import Node
from omniloom.pipelines import room, sizing
from omniloom.pipelines.config import load
from omniloom.pipelines.display import Display
from omniloom.pipelines.doctor import examine
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.room import Room
from omniloom.pipelines.runner import run
from omniloom.stages.base import Needs

ALL = ("ingest", "tokenizer_image", "tokenizer_joint", "pretokenize", "train", "evaluate")


def missing(place: Room, *overrides: str, memory=None) -> list[tuple[str, str]]:
    config = load("demo", ["storage=/nowhere", *overrides])
    return [(error.field, error.message) for error in room.missing(config, ALL, place, memory or {})]


def test_what_is_asked_for_is_held_against_what_is_there():
    assert missing(Room("this machine", (Node(2),))) == []
    gpus = ("stages.train.workers.gpus=1", "stages.pretokenize.gpus=0.5")
    assert missing(Room("the cluster", (Node(2, 1),)), *gpus) == [
        ("stages.train.workers.gpus", "missing: 1 GPU: it needs 2, the cluster has 1")
    ]
    assert missing(Room("the cluster", (Node(2, 2),)), *gpus) == []
    assert missing(Room("this machine", (Node(2),)), *gpus) == [
        ("stages.pretokenize.gpus", "missing: 0.5 GPUs: it needs 0.5, this machine has 0"),
        ("stages.train.workers.gpus", "missing: 2 GPUs: it needs 2, this machine has 0"),
    ]
    assert missing(Room("this machine", (Node(1),)), "stages.evaluate.cpus=1") == [
        (f"stages.{name}.workers.cpus", "missing: 1 CPU: it needs 2, this machine has 1")
        for name in ("tokenizer_image", "tokenizer_joint", "train")
    ]


def test_a_pinned_stage_asks_for_nothing():
    wide = "stages.train.workers.cpus=2"
    asked = missing(Room("this machine", (Node(1),)), wide)
    pinned = missing(Room("this machine", (Node(1),)), wide, f"pins.train={'0' * 64}")
    assert len(pinned) == len(asked) - 1
    assert {field for field, _ in asked} - {field for field, _ in pinned} == {"stages.train.workers.cpus"}


def test_memory_is_that_of_all_workers_here_and_of_one_on_a_gpu():
    size = {"train": {"workers": 2, "memory_per_worker_bytes": 3 << 30}}
    assert missing(Room("this machine", (Node(2, 0, 6 << 30),)), memory=size) == []
    assert missing(Room("this machine", (Node(2, 0, 5 << 30),)), memory=size) == [
        ("stages.train.workers", "missing: 1.0 GiB of memory: 2 workers need 6.0 GiB, this machine has 5.0 GiB")
    ]
    on_gpus = "stages.train.workers.gpus=1"
    assert missing(Room("this machine", (Node(2, 2, 5 << 30),), gpu_memory=3 << 30), on_gpus, memory=size) == []
    assert missing(Room("this machine", (Node(2, 2, 5 << 30),), gpu_memory=2 << 30), on_gpus, memory=size) == [
        ("stages.train.workers", "missing: 1.0 GiB of memory: a worker needs 3.0 GiB, a GPU has 2.0 GiB")
    ]


SMALL, LARGE = Node(2, 0, 2 << 30), Node(4, 1, 8 << 30)
HAS = "the cluster has a node of 2 CPUs, 0 GPUs, 2.0 GiB of memory; a node of 4 CPUs, 1 GPU, 8.0 GiB of memory"
WORKERS = "stages.train.workers"


def test_nodes_are_told_in_one_order_and_small_memory_in_mib():
    assert nodes.listed((LARGE, SMALL, LARGE)) == nodes.listed((SMALL, LARGE, LARGE))
    assert nodes.listed((LARGE, SMALL, LARGE)).startswith(
        "a node of 2 CPUs, 0 GPUs, 2.0 GiB of memory; 2 nodes of 4 CPUs"
    )
    assert str(Node(1, 0, 64 << 20)) == "1 CPU, 0 GPUs, 64 MiB of memory"
    assert Node.of({"CPU": 2.0, "GPU": 1.0, "memory": 5.0, "node:127.0.0.1": 1.0}) == Node(2, 1, 5)
    assert Node.of({}) == Node(0, 0, None)


ON_NODES = {
    "both fit on the large node": (["count=2", "cpus=2"], 0, None),
    "one on each": (["count=2", "cpus=2", "gpus=0"], 2, None),
    "a worker is larger than a node": (
        ["count=1", "cpus=5"],
        0,
        (f"{WORKERS}.cpus", f"a worker needs 5 CPUs, 0 GPUs on one node; {HAS}"),
    ),
    "a worker's memory is more than a node's": (
        ["count=1"],
        9,
        (WORKERS, f"a worker needs 1 CPU, 0 GPUs, 9.0 GiB of memory on one node; {HAS}"),
    ),
    "nodes have room in all, and for fewer workers": (
        ["count=2", "cpus=3"],
        0,
        (WORKERS, f"2 workers need 3 CPUs, 0 GPUs each, and the nodes take 1 at once: {HAS}"),
    ),
    "memory too counts by node": (
        ["count=2", "cpus=1"],
        5,
        (WORKERS, f"2 workers need 1 CPU, 0 GPUs, 5.0 GiB of memory each, and the nodes take 1 at once: {HAS}"),
    ),
    "a GPU's worker is where the GPU is": (
        ["count=1", "cpus=2", "gpus=1"],
        0,
        None,
    ),
    "GPUs in fractions share one": (["count=2", "cpus=1", "gpus=0.5"], 0, None),
    "fractions do not span nodes": (
        ["count=2", "cpus=1", "gpus=1"],
        0,
        (f"{WORKERS}.gpus", "missing: 1 GPU: it needs 2, the cluster has 1"),
    ),
}


@pytest.mark.parametrize("case", ON_NODES)
def test_a_worker_fits_on_one_node_and_the_group_on_all(case):
    settings, gigabytes, expected = ON_NODES[case]
    rows = ["stages.train.batch_rows=8"]
    config = load("demo", ["storage=/nowhere", *rows, *(f"{WORKERS}.{setting}" for setting in settings)])
    workers = config.stages.train.workers.count
    memory = {"train": {"workers": workers, "memory_per_worker_bytes": gigabytes << 30}} if gigabytes else {}
    found = list(room.missing(config, ["train"], Room("the cluster", (SMALL, LARGE)), memory))
    assert [(error.field, error.message) for error in found] == ([expected] if expected else [])


def test_a_stages_own_body_takes_from_one_node():
    def lacking(*overrides: str, nodes=(Node(2), Node(2, 2))) -> list[tuple]:
        config = load("demo", ["storage=/nowhere", *overrides])
        found = room.missing(config, ["evaluate"], Room("the cluster", nodes), {})
        return [(error.field, error.message) for error in found]

    assert lacking("stages.evaluate.gpus=2") == []
    assert lacking("stages.evaluate.gpus=2", nodes=(Node(2, 1), Node(2, 1))) == [
        ("stages.evaluate.gpus", "no node has the 2 GPUs that it needs: the cluster has 2 nodes of 2 CPUs, 1 GPU")
    ]
    assert lacking("stages.evaluate.cpus=3") == [], "on fewer CPUs it takes longer"


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


CLUSTER = """
import sys
import types
from omniloom.pipelines import cli
sys.argv = ["omniloom", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.slow
def test_a_clusters_nodes_are_asked_before_anything_starts(workspace, tmp_path):
    """A real cluster of two unlike nodes: 1 CPU with 1 GiB, 3 CPUs with 3 GiB."""
    sizes = [("--num-cpus=1", f"--memory={1 << 30}"), ("--num-cpus=3", f"--memory={3 << 30}")]
    has = "a node of 1 CPU, 0 GPUs, 1.0 GiB of memory; a node of 3 CPUs, 0 GPUs, 3.0 GiB of memory"
    wide = "stages.train.model={width: 4096, heads: 32, layers: 2}"
    with start_cluster(tmp_path / "logs", sizes=sizes) as cluster:
        own = {k: v for k, v in cluster.env.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}

        def omniloom(*arguments: str) -> tuple[int, str]:
            done = subprocess.run(
                [sys.executable, "-c", CLUSTER, *arguments], env=own, capture_output=True, text=True, timeout=120
            )
            return done.returncode, done.stdout + done.stderr

        attached = f"cluster.address={cluster.gcs}"
        for number, (command, place) in enumerate(
            (
                ("plan", [attached]),
                ("run", [attached]),
                ("doctor", [attached]),
                ("submit", ["--address", cluster.dashboard]),
            )
        ):
            overrides = workspace.overrides("stages.train.workers.count=2", "stages.train.workers.cpus=2")
            code, says = omniloom(command, "demo", *overrides, *place)
            assert code == (1 if command == "doctor" else 2), says
            assert "stages.train.workers: " in says and f"take 1 at once: the cluster has {has}" in says, says
            if not number:
                code, says = omniloom(command, "demo", *workspace.overrides("stages.train.workers.cpus=4"), *place)
                assert code == 2 and "stages.train.workers.cpus: " in says
                code, says = omniloom(command, "demo", *workspace.overrides(wide), *place)
                assert code == 2 and "of memory: 2 workers need" in says and "the cluster has 4.0 GiB" in says, says
                code, says = omniloom(command, "demo", *workspace.overrides(), *place)
                assert code == 0 and "never ran" in says, says
        code, says = omniloom("jobs", "--address", cluster.dashboard, "--json")
        assert code == 0 and says.strip().endswith("[]"), says
    code, says = omniloom("plan", "demo", *workspace.overrides(), attached)
    assert code == 0 and "what the cluster has is not known: " in says, says
    assert not (workspace.storage / "runs").exists()


def on_nodes(needs: Needs, *given: Node) -> list[str]:
    place = Room("the cluster", given)
    return [error.message for error in room._missing_on_nodes("train", None, needs, None, place)]


def test_workers_find_room_beside_the_body_that_starts_them():
    """The body may lie on either node; what it takes there no worker has."""
    body_and_worker = Needs(cpus=2, worker_cpus=4, workers=1)
    assert on_nodes(body_and_worker, Node(2), Node(4)) == on_nodes(body_and_worker, Node(4), Node(2)) == []
    (says,) = on_nodes(body_and_worker, Node(4), Node(1))
    assert says == "a worker needs 4 CPUs, 0 GPUs on one node; the cluster has a node of 1 CPU, 0 GPUs; " + (
        "a node of 4 CPUs, 0 GPUs"
    )
    assert on_nodes(Needs(worker_cpus=3 * 0.1, workers=3), Node(0.3)) == [], "shares of a CPU are no exact numbers"


def test_memory_is_known_where_every_node_tells_it_and_a_gpus_is_the_smallest_ones(monkeypatch):
    assert Room("the cluster", (Node(1, 0, 5), Node(1))).memory is None
    assert Room("the cluster", (Node(1, 0, 5), Node(1, 0, 7))).memory == 12
    sizes = [types.SimpleNamespace(total_memory=size) for size in (8 << 30, 5 << 30)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(sizes))
    monkeypatch.setattr(torch.cuda, "get_device_properties", sizes.__getitem__)
    found = room.of_this_machine(ClusterConfig(), look_for_gpus=True)
    assert (found.gpus, found.gpu_memory) == (2, 5 << 30)
