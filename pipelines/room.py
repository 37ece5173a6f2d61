"""Room: whether the CPUs, GPUs and memory that stages ask for are there.

In: the config of a pipeline, the stages that are to run, and what a machine or a cluster has. Out: an InputError for
each thing that is missing, with the field that asks for it. A stage runs alone in this count; stages side by side wait
for each other.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from omniloom.infra.cluster import Cluster, ClusterConfig
from omniloom.infra.errors import InputError
from omniloom.pipelines.config import PipelineConfig


@dataclass(frozen=True)
class Room:
    """What `name` has; bytes of memory in all, and of its smallest GPU, are None where they are not known."""

    name: str
    cpus: float
    gpus: float
    memory: int | None = None
    gpu_memory: int | None = None


def of_cluster(connected: Cluster) -> Room:
    return Room("the cluster", connected.num_cpus, connected.num_gpus)


def of_this_machine(settings: ClusterConfig, look_for_gpus: bool) -> Room:
    """What a local Ray would have at most; where nobody asks for GPUs none is looked for, which needs torch."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus, gpu_memory = _gpus() if look_for_gpus else (0, None)
    return Room(
        "this machine",
        settings.num_cpus or os.cpu_count() or 1,
        gpus if settings.num_gpus is None else settings.num_gpus,
        memory,
        gpu_memory,
    )


def _gpus() -> tuple[int, int | None]:
    import torch

    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return len(sizes), min(sizes, default=None)


def wants_gpus(config: PipelineConfig, names: Collection[str]) -> bool:
    return any(needs.gpus + needs.worker_gpus for _, _, needs in _needs(config, names))


def missing(
    config: PipelineConfig, names: Collection[str], room: Room, memory: Mapping[str, Mapping[str, int]]
) -> Iterator[InputError]:
    """What these stages lack. `memory` has, of those whose size is known, the number of `workers` and
    `memory_per_worker_bytes`."""
    for name, own, needs in _needs(config, names):
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
        if name in memory:
            yield from _missing_memory(f"stages.{name}", needs.worker_gpus > 0, memory[name], room)


def _missing_memory(field: str, on_gpus: bool, size: Mapping[str, int], room: Room) -> Iterator[InputError]:
    each, workers = size["memory_per_worker_bytes"], size["workers"]
    wanted, present = (each, room.gpu_memory) if on_gpus else (each * workers, room.memory)
    if present is not None and wanted > present:
        who, whose = ("a worker needs", "a GPU") if on_gpus else (f"{workers} workers need", room.name)
        yield InputError(
            f"missing: {_gib(wanted - present)} of memory: {who} {_gib(wanted)}, {whose} has {_gib(present)}",
            field=f"{field}.workers",
        )


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


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
