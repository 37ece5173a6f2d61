"""What trials are judged by: whether a trial's pipeline has the figure, and what its artifact says of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.graph import KNOWN
from omniloom.pipelines.selection import Selection
from omniloom.pipelines.sweeps.config import GoalConfig, PruneConfig, SweepConfig
from omniloom.stages.evaluate.config import MeasureConfig
from omniloom.stages.evaluate.figure import HIGH, LOW
from omniloom.stages.evaluate.measures import measured, named, near, of_interval

_METRIC = "sweep.goal.metric"


@dataclass(frozen=True)
class Figure:
    """The goal's value of one trial, with the ends of its 95% interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def check(config: PipelineConfig, sweep: SweepConfig, selection: Selection) -> None:
    """InputError where the trial's pipeline has not what the sweep judges by, and where a bound of pruning never
    comes."""
    goal = sweep.goal
    _check_stage(config, goal.stage, _METRIC)
    _check_figure(config, goal)
    if selection.until and goal.stage not in selection.stages(config.graph):
        raise InputError(f"is not made --until {selection.until}; leave that out, or judge by another", field=_METRIC)
    if sweep.prune:
        _check_prune(config, sweep.prune)
    for number, what in enumerate(sweep.foretell):
        stage, field = what.partition(".")[0], f"sweep.foretell.{number}"
        _check_stage(config, stage, field)
        if stage not in config.graph.names[: config.graph.names.index(goal.stage)]:
            raise InputError(f"{stage} does not come before {goal.stage}", field=field)


def _check_stage(config: PipelineConfig, name: str, field: str) -> None:
    if name not in config.graph.names:
        raise InputError(f"{name} is no stage of this pipeline{near(name, config.graph.names)}", field=field)


def _check_figure(config: PipelineConfig, goal: GoalConfig) -> None:
    """Of an evaluation that measures a trained model the figures are known; of other stages they come out."""
    own = getattr(config.stages, goal.stage)
    upstream = config.graph.upstream(goal.stage)
    model: Any = getattr(config.stages, upstream.get("model", ""), None)
    if not isinstance(own, MeasureConfig) or not hasattr(model, "trained"):
        return
    known = measured(own, model.trained, "scorer" in upstream)
    name = of_interval(goal.name) or goal.name
    if name not in known:
        raise InputError(f"{goal.name} is not measured by this pipeline{near(goal.name, known)}", field=_METRIC)
    better = getattr(named(name), "better", None)
    if better and better != {"maximize": "higher", "minimize": "lower"}[goal.direction]:
        raise InputError(f"of {goal.name} {better} is better, got {goal.direction}", field="sweep.goal.direction")


def _check_prune(config: PipelineConfig, prune: PruneConfig) -> None:
    _check_stage(config, prune.stage, "sweep.prune.metric")
    own = getattr(config.stages, prune.stage)
    steps, every = getattr(own, "steps", None), getattr(own, "validate_every", None)
    if steps is None or every is None:
        trainings = [stage.name for stage in KNOWN if hasattr(getattr(config.stages, stage.name), "validate_every")]
        raise InputError(f"{prune.stage} is no training{near(prune.stage, trainings)}", field="sweep.prune.metric")
    first = -(-prune.after // every) * every
    if first >= steps:
        raise InputError(
            f"nothing would be pruned: of {steps} steps, validated every {every}, the first validation from there on "
            f"is after step {min(first, steps)}, at the end",
            field="sweep.prune.after",
        )


def figure(artifact: Artifact, goal: GoalConfig) -> Figure | None:
    """What came out; None where the figure is none, or not there."""
    value = artifact.metrics.get(goal.name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    low, high = (artifact.metrics.get(goal.name + end) for end in (LOW, HIGH))
    return Figure(value, low, high)
