"""Room: whether the CPUs, GPUs and memory that stages ask for are there.

In: the config of a pipeline, the stages that are to run, and what a machine or the nodes of a cluster have. Out: an
InputError for each thing that is missing, with the field that asks for it. A stage runs alone in this count; stages
side by side wait for each other.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from omniloom.infra import cluster, gpus
from omniloom.infra.cluster import ClusterConfig
from omniloom.infra.errors import InputError, together
from omniloom.infra.nodes import Node, gib, listed
from omniloom.infra.training.config import WorkersConfig
from omniloom.pipelines import fitting, sizing
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


def check_attached(config: PipelineConfig, names: Collection[str]) -> tuple[list[str], tuple[Node, ...]]:
    """The nodes of the cluster that `cluster.address` names; InputError where they have too little for what would run.
    Where it does not answer, a note in their place: a plan can be made before its cluster is up."""
    if not names or config.cluster.address in (None, "local"):
        return [], ()
    try:
        connected = cluster.connect_to(config.cluster)
    except InputError as error:
        return [f"what the cluster has is not known: {placed(config, error)}"], ()
    try:
        check(config, names, connected.nodes)
    finally:
        if connected.opened:
            cluster.shutdown()
    return [], connected.nodes


def accelerator_of(workers: WorkersConfig, nodes: Sequence[Node]) -> str | None:
    """Ray's name of the GPU that a worker would have: the one it asks for, or of those that nodes with enough GPUs tell
    the one with least memory, as it may be any of them. None where one of them tells none."""
    if not workers.gpus or workers.accelerator_type:
        return workers.accelerator_type
    told = {node.accelerator for node in nodes if node.gpus >= workers.gpus}
    if None in told:
        return None
    return min(filter(None, told), key=lambda name: (gpus.known(name).memory or 0, name), default=None)


def wants_gpus(config: PipelineConfig, names: Collection[str]) -> bool:
    return any(needs.gpus + needs.worker_gpus for _, _, needs in _needs(config, names))


def missing(
    config: PipelineConfig, names: Collection[str], room: Room, memory: Mapping[str, Mapping[str, int]]
) -> Iterator[InputError]:
    """What these stages lack in all or, where that is there, on single nodes. `memory` has, of those whose size is
    known, the number of `workers` and `memory_per_worker_bytes`."""
    for name, own, needs in _needs(config, names):
        size = memory.get(name)
        lacking = [*_missing_in_all(name, own, needs, room)]
        if needs.worker_gpus:
            lacking += _missing_on_gpus(config, name, own, size, room)
        else:
            lacking += _missing_memory(name, size, room)
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


def _missing_memory(name: str, size: Mapping[str, int] | None, room: Room) -> Iterator[InputError]:
    if size is None or room.memory is None:
        return
    wanted, present = size["memory_per_worker_bytes"] * size["workers"], room.memory
    if wanted > present:
        yield InputError(
            f"missing: {gib(wanted - present)} of memory: {_need(size['workers'])} {gib(wanted)}, {room.name} has "
            f"{gib(present)}",
            field=f"stages.{name}.workers",
        )


def _missing_on_gpus(
    config: PipelineConfig, name: str, own: Any, size: Mapping[str, int] | None, room: Room
) -> Iterator[InputError]:
    """Of a worker, in the memory of its GPU, as far as that is known; with what would make it fit."""
    if size is None:  # what its workers need is not known
        return
    gpu = accelerator_of(own.workers, room.nodes)
    if (whole := room.gpu_memory or gpus.known(gpu).memory) is None:
        return
    wanted, present = size["memory_per_worker_bytes"], int(whole * min(1.0, own.workers.gpus))
    if wanted <= present:
        return
    fit = fitting.of_stage(config, name, gpu or "a GPU", whole)
    if fit and fit.fits and own.engine.activation_checkpointing == "auto":  # computed again where there is no room
        return
    yield InputError(
        f"missing: {gib(wanted - present)} of memory: a worker needs {gib(wanted)}, {gpu or 'a GPU'} has {gib(present)}"
        + (f"; {fit.changes}" if fit and fit.changes else ""),
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
    if needs.accelerator:
        yield from _missing_kind(name, needs.accelerator, room)
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


def _missing_kind(name: str, accelerator: str, room: Room) -> Iterator[InputError]:
    """Where all nodes with GPUs tell their kind, and none is the one that is asked for."""
    told = {node.accelerator for node in room.nodes if node.gpus}
    if told and None not in told and accelerator not in told:
        yield InputError(
            f"no node has GPUs of this kind, {accelerator}: {room.name} has {listed(room.nodes)}",
            field=f"stages.{name}.workers.accelerator_type",
        )


def _beside_body(needs: Needs, nodes: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    """What the nodes have left while the stage's body runs, for each that may have it; of its CPUs it takes what the
    largest node has, where none has all."""
    cpus = min(needs.cpus, max(node.cpus for node in nodes))
    for number, node in enumerate(nodes):
        if node.cpus >= cpus and node.gpus >= needs.gpus:
            rest = replace(node, cpus=node.cpus - cpus, gpus=node.gpus - needs.gpus)
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
