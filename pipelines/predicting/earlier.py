"""What a stage made before, in this storage, and how long that took."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from omniloom.infra.artifacts import Artifact
from omniloom.infra.training.config import WorkersConfig
from omniloom.pipelines.planned import PlannedStage
from omniloom.pipelines.predicting import figures
from omniloom.pipelines.predicting.figures import Takes

_Settings = TypeVar("_Settings", bound=BaseModel)


def ran(planned: PlannedStage) -> Artifact | None:
    """What the stage made before, if it says how long that took."""
    before = planned.known
    return before if before and before.manifest["times"].get("seconds") else None


def trained(planned: PlannedStage) -> Artifact | None:
    """As `ran`, of a training that did steps."""
    before = ran(planned)
    return before if before and before.metrics.get("units") else None


def config_of(kind: type[_Settings], before: Artifact) -> _Settings | None:
    """What made the artifact, as far as it was kept; None where that was a version with other fields."""
    try:
        return kind.model_validate(before.manifest["config"])
    except ValueError:
        return None


def on_such(before: Artifact, workers: WorkersConfig) -> bool:
    """Whether the run before had GPUs as these workers have."""
    return bool(before.metrics.get("gpus", workers.gpus)) == bool(workers.gpus)


def timed(
    units: float, before: Artifact, cost: float, workers: WorkersConfig, unit: str, fixed: dict[str, Any]
) -> Takes:
    """At the rate of the run before, for as many workers as there are now; start and end take what they took."""
    metrics = before.metrics
    # Of a run from before the rate was kept, the whole training's.
    then = metrics.get("units_per_second") or metrics["units"] / metrics["seconds"]
    rate = then / cost * workers.most / metrics.get("workers", workers.most)
    around = max(0.0, before.manifest["times"]["seconds"] - metrics["seconds"])
    return figures.of_workers(around + units / rate, rate, workers, unit, when(before), fixed)


def when(before: Artifact) -> str:
    return f"as {before.fingerprint[:12]} ran on {before.manifest['times']['ended'][:10]}"
