"""Room: whether the CPUs, GPUs and memory that stages ask for are there.

In: the config of a pipeline, the stages that are to run, and what a machine or the nodes of a cluster have. Out: an
InputError for each thing that is missing, with the field that asks for it. A stage runs alone in this count; stages
side by side wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from omniloom.infra import cluster
from omniloom.infra.cluster import ClusterConfig
from omniloom.infra.errors import InputError, together
from omniloom.infra.nodes import Node, gib, listed
from omniloom.pipelines import sizing
from omniloom.pipelines.config import PipelineConfig, placed
from omniloom.stages.base import Needs


@dataclass(frozen=True)
class Room:
    """The nodes that `name` has, and bytes of memory of its smallest GPU, None where they are not known."""

    name: str
    nodes: tuple[Node, ...]
    gpu_memory: int | None = None

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    @property
    def memory(self) -> float | None:
        """Bytes of all nodes; None where one does not tell."""
        told = [node.memory for node in self.nodes if node.memory is not None]
        return sum(told) if len(told) == len(self.nodes) else None


def of_cluster(nodes: tuple[Node, ...]) -> Room:
    return Room("the cluster", nodes)


def of_this_machine(settings: ClusterConfig, look_for_gpus: bool) -> Room:
    """What a local Ray would have at most; where nobody asks for GPUs none is looked for, which needs torch."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus, gpu_memory = _gpus() if look_for_gpus else (0, None)
    node = Node(
        settings.num_cpus or os.cpu_count() or 1, gpus if settings.num_gpus is None else settings.num_gpus, memory
    )
    return Room("this machine", (node,), gpu_memory)


def _gpus() -> tuple[int, int | None]:
    import torch

    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return len(sizes), min(sizes, default=None)


def check(config: PipelineConfig, names: Collection[str], nodes: tuple[Node, ...] | None = None) -> None:
    """InputError where these nodes of a cluster, or without them this machine, have too little for what would run."""
    place = of_cluster(nodes) if nodes else of_this_machine(config.cluster, wants_gpus(config, names))
    if lacking := [placed(config, error) for error in missing(config, names, place, sizing.least(config))]:
        raise together(lacking)


def check_attached(config: PipelineConfig, names: Collection[str]) -> list[str]:
    """InputError where the cluster that `cluster.address` names has too little for what would run. Where it does not
    answer, a note: a plan can be made before its cluster is up."""
    if not names or config.cluster.address in (None, "local"):
        return []
    try:
        connected = cluster.connect_to(config.cluster)
    except InputError as error:
        return [f"what the cluster has is not known: {placed(config, error)}"]
    try:
        check(config, names, connected.nodes)
    finally:
        if connected.opened:
            cluster.shutdown()
    return []


def wants_gpus(config: PipelineConfig, names: Collection[str]) -> bool:
    return any(needs.gpus + needs.worker_gpus for _, _, needs in _needs(config, names))


def missing(
    config: PipelineConfig, names: Collection[str], room: Room, memory: Mapping[str, Mapping[str, int]]
) -> Iterator[InputError]:
    """What these stages lack in all or, where that is there, on single nodes. `memory` has, of those whose size is
    known, the number of `workers` and `memory_per_worker_bytes`."""
    for name, own, needs in _needs(config, names):
        size = memory.get(name)
        lacking = [*_missing_in_all(name, own, needs, room), *_missing_memory(name, needs, size, room)]
        yield from lacking or _missing_on_nodes(name, own, needs, size, room)


def _missing_in_all(name: str, own: Any, needs: Needs, room: Room) -> Iterator[InputError]:
    for kind, wanted, present in (
        ("cpus", needs.cpus + needs.worker_cpus, room.cpus),
        ("gpus", needs.gpus + needs.worker_gpus, room.gpus),
    ):
        if wanted > present:
            what = kind[:-1].upper() + ("s" if wanted - present != 1 else "")
            yield InputError(
                f"missing: {wanted - present:g} {what}: it needs {wanted:g}, {room.name} has {present:g}",
                field=f"stages.{name}{_field(own, kind)}",
            )


def _missing_memory(name: str, needs: Needs, size: Mapping[str, int] | None, room: Room) -> Iterator[InputError]:
    if size is None:
        return
    each, workers, on_gpus = size["memory_per_worker_bytes"], size["workers"], needs.worker_gpus > 0
    wanted, present = (each, room.gpu_memory) if on_gpus else (each * workers, room.memory)
    if present is not None and wanted > present:
        who, whose = ("a worker needs", "a GPU") if on_gpus else (_need(workers), room.name)
        yield InputError(
            f"missing: {gib(wanted - present)} of memory: {who} {gib(wanted)}, {whose} has {gib(present)}",
            field=f"stages.{name}.workers",
        )


def _missing_on_nodes(
    name: str, own: Any, needs: Needs, size: Mapping[str, int] | None, room: Room
) -> Iterator[InputError]:
    """A worker lies on one node, and so does the stage's own body; the workers of a group may lie on several."""
    has = f"{room.name} has {listed(room.nodes)}"
    if needs.gpus and not any(node.gpus >= needs.gpus for node in room.nodes):
        yield InputError(f"no node has the {needs.gpus:g} GPUs that it needs: {has}", field=f"stages.{name}.gpus")
    if not needs.workers:
        return
    worker = Node(needs.worker_cpus / needs.workers, needs.worker_gpus / needs.workers)
    if size and not needs.worker_gpus:
        worker = Node(worker.cpus, worker.gpus, size["memory_per_worker_bytes"])
    if (taken := max(_taken(worker, nodes) for nodes in _beside_body(needs, room.nodes))) >= needs.workers:
        return
    if not taken:
        says = f"a worker needs {worker} on one node; {has}"
    else:
        says = f"{_need(needs.workers)} {worker} each, and the nodes take {taken} at once: {has}"
    lacking = [kind for kind in ("cpus", "gpus") if not any(_has(node, worker, kind) for node in room.nodes)]
    yield InputError(says, field=f"stages.{name}{_field(own, lacking[0]) if lacking else '.workers'}")


def _beside_body(needs: Needs, nodes: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    """What the nodes have left while the stage's body runs, for each that may have it; of its CPUs it takes what the
    largest node has, where none has all."""
    cpus = min(needs.cpus, max(node.cpus for node in nodes))
    for number, node in enumerate(nodes):
        if node.cpus >= cpus and node.gpus >= needs.gpus:
            rest = Node(node.cpus - cpus, node.gpus - needs.gpus, node.memory)
            yield (*nodes[:number], rest, *nodes[number + 1 :])


def _taken(worker: Node, nodes: tuple[Node, ...]) -> int:
    """How many such workers the nodes take at once."""
    return sum(
        min(
            int(present / wanted + 1e-9)
            for wanted, present in (
                (worker.cpus, node.cpus),
                (worker.gpus, node.gpus),
                (worker.memory, node.memory),
            )
            if wanted and present is not None
        )
        for node in nodes
    )


def _has(node: Node, worker: Node, kind: str) -> bool:
    return getattr(node, kind) >= getattr(worker, kind)


def _need(workers: int) -> str:
    return f"{workers} workers need" if workers > 1 else "1 worker needs"


def _needs(config: PipelineConfig, names: Collection[str]) -> Iterator[tuple[str, Any, Any]]:
    for stage in config.graph.stages:
        if stage.name in names and stage.name not in config.pins:
            own = getattr(config.stages, stage.name)
            yield stage.name, own, stage.needs(own)


def _field(config: Any, kind: str) -> str:
    """The field of a stage's config that says how many CPUs or GPUs it takes, with a dot before it; empty where it has
    none of the usual ones."""
    for path in (kind, f"workers.{kind}", f"training.workers.{kind}"):
        if reduce(lambda value, part: getattr(value, part, None), path.split("."), config) is not None:
            return f".{path}"
    return ""
