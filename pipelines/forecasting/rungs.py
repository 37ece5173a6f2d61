"""Which trainings the ladder has, as a sweep of whole stages `train`. In: a pipeline's config, as checked and as plain
literals. Out: rungs; the literals of a pipeline whose sweep they are. InputError where the config cannot be a ladder's.

Every rung has muP with one base, the config's own model unless the config names another: `optimizer.lr` is taken to be
the best rate there. What is no part of a training's outcome is left out: pictures while it trains, validations before
its end, and the stages that nothing here reads.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.forecasting.config import ForecastConfig
from omniloom.stages.train.config import TrainConfig

_FRACTIONS = (0.25, 0.375, 0.5, 0.75)  # of the width, where no sizes are named
STAGE = "train"


@dataclass(frozen=True)
class Rung:
    """A training of the ladder; what is None is as in the config."""

    size: Mapping[str, int]
    steps: int
    lr: float | None = None
    mixture: Any = None
    objectives: Any = None

    def train(self, literals: Mapping[str, Any], base: Mapping[str, int]) -> dict[str, Any]:
        """The stage's literals, of those that the config has."""
        given = copy.deepcopy(dict(literals))
        others = {name: value for name, value in (given.pop("model", None) or {}).items() if name not in self.size}
        # First what tells one rung from another, as tables cut long values.
        own: dict[str, Any] = {"steps": self.steps, "model": {**self.size, **others, "mup": dict(base)}}
        own |= {name: value for name, value in given.items() if name != "steps"}
        for section, name, value in (("optimizer", "lr", self.lr), ("packing", "mixture", self.mixture)):
            if value is not None:
                own[section] = (own.get(section) or {}) | {name: value}
        if self.objectives is not None:
            own["objectives"] = self.objectives
        return own


class Ladder:
    """The rungs of a config, and the sweeps that train them. `literals` are the config's, paths made absolute."""

    def __init__(self, config: PipelineConfig, literals: Mapping[str, Any]):
        self.config, self.literals = config, literals
        self.section = config.forecast or ForecastConfig()
        train: TrainConfig | None = getattr(config.stages, STAGE)
        if train is None:
            raise InputError("a forecast is of this stage, which the pipeline has not", field=f"stages.{STAGE}")
        if train.init_from or train.continue_from:
            field = "init_from" if train.init_from else "continue_from"
            raise InputError("a ladder's sizes begin at random; leave it out", field=f"stages.{STAGE}.{field}")
        self.train = train
        self.sizes = [dict(size) for size in self.section.sizes or self._usual_sizes()]
        self.steps = sorted(self.section.steps or self._usual_steps())
        model: Any = train.model
        own = {"width": model.width, "layers": model.layers, "heads": model.heads}
        mup = model.mup
        self.base = {k: v for k, v in vars(mup).items() if v is not None} if mup else own

    def _usual_sizes(self) -> list[dict[str, int]]:
        model: Any = self.train.model
        written = [name for name in ("hidden", "head_dim", "kv_heads") if getattr(model, name) is not None]
        if written:
            says = f"name the ladder's sizes, as model.{written[0]} is written and does not follow from the width"
            raise InputError(says, field="forecast.sizes")
        channels = model.width // model.heads
        heads = sorted({max(1, round(model.heads * part)) for part in _FRACTIONS})
        if len(heads) < 3:
            says = f"name the ladder's sizes: {model.heads} heads have no three smaller numbers of heads"
            raise InputError(says, field="forecast.sizes")
        return [{"width": channels * count, "heads": count} for count in heads]

    def _usual_steps(self) -> list[int]:
        return sorted({max(1, self.train.steps // part) for part in (4, 2, 1)})

    def tries(self) -> list[Rung]:
        """Trainings of the smallest size by which the learning rate is chosen; none where it is the config's."""
        return [Rung(self.sizes[0], self.steps[0], lr) for lr in self.section.rates or ()]

    def rungs(self, lr: float | None = None) -> list[Rung]:
        """In the order of their cost within a mixture and an objective."""
        objectives: Sequence[Any] = self.section.objectives or (None,)
        mixtures: Sequence[Any] = self.section.mixtures or (None,)
        return [
            Rung(size, steps, lr, mixture, own)
            for own, mixture in itertools.product(objectives, mixtures)
            for size, steps in itertools.product(self.sizes, self.steps)
        ]

    def sweep(self, rungs: Sequence[Rung]) -> dict[str, Any]:
        """The literals of a pipeline whose trials are the rungs, in their order."""
        goal = self.section.goal
        last = goal.stage if goal else STAGE
        graph = self.config.graph
        if last not in graph.names:
            raise InputError(f"{last} is no stage of this pipeline", field="forecast.goal.metric")
        needed = graph.ancestors(last) | {last, STAGE}
        found = copy.deepcopy(dict(self.literals))
        found["stages"] = {name: own for name, own in found["stages"].items() if name in needed}
        found.pop("forecast", None)
        judged = goal.model_dump() if goal else {"metric": f"{STAGE}.loss", "direction": "minimize"}
        found["name"] += "-forecast"  # what the pipeline itself used last stays
        found["tracking"] = (found.get("tracking") or {}) | {"register_as": None}
        values = [rung.train(found["stages"][STAGE], self.base) for rung in rungs]
        for own in values:
            own["validate_every"], own["samples"] = own["steps"], (own.get("samples") or {}) | {"count": 0}
        if "evaluate" in found["stages"]:
            found["stages"]["evaluate"] = {k: v for k, v in found["stages"]["evaluate"].items() if k != "gate"}
        found["sweep"] = {"fields": {f"stages.{STAGE}": values}, "goal": judged}
        return found


def shape_between(sizes: Sequence[Mapping[str, int]], driver: str, value: int) -> dict[str, int]:
    """The size whose `driver` (width or layers) has a value: the other fields follow as they do in the ladder, along
    the line through its sizes on logarithmic axes. Heads keep the channels that they have in the largest."""
    logs = [math.log(size[driver]) for size in sizes]
    mean = sum(logs) / len(logs)
    spread = sum((log - mean) ** 2 for log in logs)
    found = {}
    for name in sizes[0]:
        own = [math.log(size[name]) for size in sizes]
        slope = sum((log - mean) * o for log, o in zip(logs, own)) / spread
        middle = sum(own) / len(own)
        found[name] = max(1, round(math.exp(middle + slope * (math.log(value) - mean))))
    found[driver] = value
    if driver == "width" and "heads" in found:
        largest = max(sizes, key=lambda size: size["width"])
        found["heads"] = max(1, value // (largest["width"] // largest["heads"]))
    return found
