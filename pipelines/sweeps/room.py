"""Whether another trial finds room beside those that run. In: the cluster's nodes, trials. A trial counts as what the
hungriest of its stages that are still to run takes, by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from omniloom.infra.nodes import Node
from omniloom.pipelines.sweeps.trials import Trial


class Room:
    def __init__(self, nodes: Sequence[Node]):
        self.cpus, self.gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)

    def takes(self, trial: Trial, others: Iterable[Trial]) -> bool:
        """One by itself is always taken: what it needs in all was asked before."""
        wanted = [needs(other) for other in others]
        if not wanted or not trial.to_make:
            return True
        wanted.append(needs(trial))
        return sum(cpus for cpus, _ in wanted) <= self.cpus and sum(gpus for _, gpus in wanted) <= self.gpus


def needs(trial: Trial) -> tuple[float, float]:
    """CPUs and GPUs."""
    found = [planned.stage.needs(planned.config) for planned in trial.plan.to_execute]
    cpus = max((each.cpus + each.worker_cpus for each in found), default=0.0)
    return cpus, max((each.gpus + each.worker_gpus for each in found), default=0.0)
