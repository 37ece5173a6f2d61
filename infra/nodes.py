"""The nodes of a Ray cluster. In: the Ray of this process, or a cluster's dashboard. Out: what each node has."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omniloom.infra.gpus import LABEL
from omniloom.infra.waiting import settled

_ANSWER_SECONDS = 60.0  # a worker process starts in some seconds


@dataclass(frozen=True)
class Node:
    """CPUs, GPUs and bytes of memory that Ray may give to tasks on one machine; memory None where it is not known, and
    so is `accelerator`, Ray's name of its GPUs."""

    cpus: float
    gpus: float = 0
    memory: float | None = None
    accelerator: str | None = None

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Node:
        """A node from Ray's resources: `CPU`, `GPU`, `memory`, of which those that are 0 are left out, and
        `accelerator_type:NAME`."""
        name = next((key.removeprefix(LABEL) for key in sorted(resources) if key.startswith(LABEL)), None)
        return cls(resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("memory"), name)

    def __str__(self) -> str:
        kind = f" ({self.accelerator})" if self.accelerator and self.gpus else ""
        parts = [f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}", f"{self.gpus:g} GPU{'s' * (self.gpus != 1)}{kind}"]
        return ", ".join(parts + ([f"{gib(self.memory)} of memory"] if self.memory is not None else []))


def connected() -> tuple[Node, ...]:
    """The nodes that are alive of the cluster that this process is connected to."""
    import ray

    return tuple(Node.of(node["Resources"]) for node in ray.nodes() if node["Alive"])


def ask_each(function: Callable[..., Any], *arguments: Any) -> Iterator[tuple[str, Any]]:
    """(host, what the function gives in a worker there) of each node that is alive. One that does not answer within a
    minute, or whose workers cannot load the function, is left out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(function)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = task.options(num_cpus=0, scheduling_strategy=there, max_retries=1)
            asked[options.remote(*arguments)] = node["NodeManagerHostname"]
    answered, silent = settled(list(asked), _ANSWER_SECONDS)
    for reference in silent:
        ray.cancel(reference, force=True)
    for reference in answered:
        with contextlib.suppress(ray.exceptions.RayError):
            yield asked[reference], ray.get(reference)


def behind(dashboard: str) -> tuple[Node, ...]:
    """The nodes that are alive of the cluster whose dashboard has this URL; whatever Ray raises where it tells none."""
    from ray.util.state import list_nodes

    found = list_nodes(dashboard, filters=[("state", "=", "ALIVE")], limit=10_000, raise_on_missing_output=False)
    return tuple(Node.of(node.resources_total) for node in found)


def listed(nodes: Iterable[Node]) -> str:
    """`a node of 1 CPU, 0 GPUs; 2 nodes of 4 CPUs, 0 GPUs`, the smallest first: Ray tells them in any order."""
    counted = Counter(map(str, sorted(nodes, key=lambda node: (node.cpus, node.gpus, node.memory or 0))))
    return "; ".join(f"{f'{count} nodes' if count > 1 else 'a node'} of {text}" for text, count in counted.items())


def gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**27 else f"{count / 2**20:.0f} MiB"
