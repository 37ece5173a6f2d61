"""What the ladder's trainings came to, and what holds for all of them: curves of losses, seconds and memory. In: rungs
with their artifacts. Out: `Seen`, and `Curves`, which predict a training that was not run.

The planner's formulas say what a step and a worker take of one size against another (`stages.train.cost`,
`stages.train.memory`). What they leave open is measured: of a step's seconds a factor and a part that does not grow, by
least squares of relative errors; of memory what a process takes beside the training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.parameters import num_parameters
from omniloom.pipelines.forecasting import laws
from omniloom.pipelines.forecasting.laws import Fitted
from omniloom.pipelines.forecasting.rungs import Rung
from omniloom.pipelines.sweeps.config import GoalConfig
from omniloom.stages.train.config import TrainConfig
from omniloom.stages.train.cost import step_cost
from omniloom.stages.train.memory import worker_memory

GOAL = "goal"  # the figure that objectives are compared by, as an error that falls to 0


@dataclass(frozen=True)
class Seen:
    """A training. `losses` and, by the same names, `targets`: what the validation's means are, and what was trained on;
    the goal's are the error and all tokens. `seconds`: of its steps alone; `around`: of the stage beside them."""

    rung: Rung
    config: TrainConfig
    model: UnifiedConfig
    losses: Mapping[str, float]
    targets: Mapping[str, float]
    tokens: float
    seconds: float
    around: float
    memory: float | None

    @property
    def parameters(self) -> int:
        return num_parameters(self.model)

    @property
    def step_seconds(self) -> float:
        return self.seconds / self.rung.steps


def read(rung: Rung, config: TrainConfig, made: Artifact, judged: Artifact | None, goal: GoalConfig | None) -> Seen:
    """What a rung's artifacts say. InputError where a figure is missing."""
    from omniloom.models.unified.objectives.objective import loss_name  # heavy
    from omniloom.stages.reporting import history

    metrics, rows = made.metrics, history.load(made.file("report", "history.jsonl"))
    model = UnifiedConfig(**json.loads(storage.read_bytes(made.file("model", "config.json")))["unified"])
    names = {"text": "text_loss", **{name: loss_name(name, config.trained) for name in config.trained}}
    steps = [row for row in rows if "tokens_per_second" in row]
    losses, targets = {}, {}
    for counted, name in names.items():
        if (value := metrics.get(f"validation_{name}")) is not None:
            losses[name] = value
            targets[name] = _summed(steps, f"{counted}_targets")
    if goal and judged:
        losses[GOAL] = _error(judged.metrics.get(goal.name), goal)
        targets[GOAL] = metrics["units"]
    before = [0.0, *(row["units"] for row in steps)]
    seconds = sum((row["units"] - start) / row["tokens_per_second"] for start, row in zip(before, steps))
    peak = metrics.get("peak_memory_mebibytes")
    return Seen(
        rung,
        config,
        model,
        losses,
        targets,
        metrics["units"],
        seconds,
        max(0.0, made.manifest["times"]["seconds"] - seconds),
        peak and peak * (1 << 20),
    )


def _summed(rows: Iterable[Mapping[str, float]], name: str) -> float:
    """Over all steps, of means over the steps since the row before."""
    total = before = 0.0
    for row in rows:
        total += (row["step"] - before) * row[name]
        before = row["step"]
    return total


def _error(value: Any, goal: GoalConfig) -> float:
    """What is left to 1, or the figure itself where less is better; never 0, of which there is no logarithm."""
    if value is None:
        raise InputError(f"{goal.stage} gave no number {goal.name}", field="forecast.goal.metric")
    return max(1e-3, 1 - value if goal.sign > 0 else value)


@dataclass(frozen=True)
class Curves:
    """What is predicted of any training of one mixture and kind: losses by name, and what it takes.

    `shares`: by loss, the targets of a token. A step takes `overhead + factor * step_cost` seconds, a stage `around`
    seconds beside its steps, a worker `beside` bytes and what the planner says."""

    losses: Mapping[str, Fitted]
    shares: Mapping[str, float]
    tokens_of_step: float
    overhead: float
    factor: float
    around: float
    beside: float | None

    def loss(self, name: str, parameters: float, tokens: float) -> float:
        return float(self.losses[name].law(parameters, tokens * self.shares[name]))

    def interval(self, name: str, parameters: float, tokens: float) -> tuple[float, float]:
        return self.losses[name].interval(parameters, tokens * self.shares[name])

    def step_seconds(self, config: TrainConfig, model: UnifiedConfig) -> float:
        return self.overhead + self.factor * step_cost(config, model)

    def memory(self, config: TrainConfig, model: UnifiedConfig) -> float | None:
        return None if self.beside is None else self.beside + sum(worker_memory(config, model).values())


def curves(of_kind: Sequence[Seen], of_mixture: Sequence[Seen], resamples: int, seed: int) -> Curves:
    """Of an objective: laws through all its trainings, whatever their mixture, and how much of each target a token is
    worth in one mixture. ValueError where the trainings are too few."""
    fitted = {}
    for name in of_kind[0].losses:
        with_it = [seen for seen in of_kind if name in seen.losses and seen.targets.get(name)]
        parameters, targets = [seen.parameters for seen in with_it], [seen.targets[name] for seen in with_it]
        losses = [seen.losses[name] for seen in with_it]
        try:
            fitted[name] = laws.fit_resampled(parameters, targets, losses, resamples, seed)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    overhead, factor = _line(
        [step_cost(seen.config, seen.model) for seen in of_kind], [seen.step_seconds for seen in of_kind]
    )
    left = [s.memory - sum(worker_memory(s.config, s.model).values()) for s in of_kind if s.memory]
    tokens = sum(seen.tokens for seen in of_mixture)
    return Curves(
        fitted,
        {name: sum(seen.targets[name] for seen in of_mixture) / tokens for name in fitted},
        tokens / sum(seen.rung.steps for seen in of_mixture),
        overhead,
        factor,
        median(seen.around for seen in of_kind),
        median(left) if left else None,
    )


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(a, b), neither below 0, of y = a + b x with the least squares of relative errors."""
    from scipy.optimize import nnls

    rows = np.array([[1 / value, cost / value] for cost, value in zip(x, y)])
    scale = rows.max(0)
    found, _ = nnls(rows / scale, np.ones(len(rows)))
    return float(found[0] / scale[0]), float(found[1] / scale[1])
