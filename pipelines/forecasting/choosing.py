"""What a budget buys: the best size, mixture and objective, and how far the ladder is to be trusted. In: a ladder and
what its trainings came to. Out: a `Choice` for each objective; `Check`s, of the largest size predicted from the others.

A budget is of devices' hours of the training itself. Of each size it pays for so many steps, and the laws say what they
come to; the best is where the weighted sum of losses is least. Sizes lie on the ladder's line of shapes, up to
`_REACH` times its largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from omniloom.infra.errors import InputError
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.parameters import num_parameters
from omniloom.models.unified.representations import OBJECTIVES
from omniloom.pipelines.forecasting.rungs import STAGE, Ladder, Rung, shape_between
from omniloom.pipelines.forecasting.seen import GOAL, Curves, Seen, curves
from omniloom.stages.train.config import TrainConfig

_REACH = 8  # times the ladder's largest width or depth
_CANDIDATES = 48  # sizes at most


@dataclass(frozen=True)
class Predicted:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """The best training of one objective for the budget. `parameters_interval`: 95% of the resamples' best sizes."""

    rung: Rung
    parameters: int
    parameters_interval: tuple[float, float]
    tokens: float
    losses: Mapping[str, Predicted]
    total: float
    seconds: float
    memory: float | None
    curves: Curves
    at_border: bool


@dataclass(frozen=True)
class Check:
    """A figure of the largest size's longest training, predicted by curves through the smaller ones, and seen."""

    kind: str
    figure: str
    predicted: float
    seen: float

    @property
    def off(self) -> float:
        return self.predicted / self.seen - 1


def devices(config: TrainConfig) -> tuple[str, float]:
    """What hours are of, and how many of them the training has."""
    own = config.workers
    return ("GPU", own.most * own.gpus) if own.gpus else ("CPU", own.most * own.cpus)


def weights(ladder: Ladder, config: TrainConfig, names: Sequence[str]) -> dict[str, float]:
    """By loss, how much it counts: as the section says, or as the training adds them up."""
    if given := ladder.section.weights:
        if unknown := set(given) - set(names):
            says = f"{', '.join(sorted(unknown))} is no loss of this training, which has {', '.join(names)}"
            raise InputError(says, field="forecast.weights")
        return {name: given.get(name, 0.0) for name in names}
    own = config.loss
    found = {"text_loss": own.text_weight}
    for objective in config.trained:
        usual = own.text_weight if OBJECTIVES[objective].representation.discrete else own.visual_weight
        weight = own.objective_weights.get(objective, usual)
        found |= {name: weight for name in ("visual_loss", f"{objective}_loss")}
    return {name: found[name] for name in names}


def kinds(seen: Sequence[Seen]) -> list[list[Seen]]:
    """By objective, in the ladder's order."""
    found: dict[str, list[Seen]] = {}
    for one in seen:
        found.setdefault(repr(one.rung.objectives), []).append(one)
    return list(found.values())


def mixtures(of_kind: Sequence[Seen]) -> list[list[Seen]]:
    found: dict[str, list[Seen]] = {}
    for one in of_kind:
        found.setdefault(repr(one.rung.mixture), []).append(one)
    return list(found.values())


def choose(ladder: Ladder, of_kind: Sequence[Seen], seconds: float) -> Choice:
    """The best training of an objective in so many seconds. InputError where they are too few for any."""
    section, best = ladder.section, None
    for of_mixture in mixtures(of_kind):
        found = curves(of_kind, of_mixture, section.resamples, section.seed)
        if made := _best_size(ladder, of_mixture[0], found, seconds):
            best = made if best is None or made.total < best.total else best
    if best is None:
        raise InputError(f"{seconds:.0f} s of the workers pay for no step of any size", field="--budget")
    return best


def _best_size(ladder: Ladder, example: Seen, found: Curves, seconds: float) -> Choice | None:
    names = [name for name in found.losses if name != GOAL]
    weight = weights(ladder, example.config, names)
    candidates = []
    for rung, config, model in sizes(ladder, example):
        step = found.step_seconds(config, model)
        steps = math.floor((seconds - found.around) / step)
        if steps >= max(1, config.optimizer.warmup_steps):
            candidates.append((replace(rung, steps=steps), config, model, found.around + steps * step))
    if not candidates:
        return None
    numbers = np.array([num_parameters(model) for _, _, model, _ in candidates], dtype=np.float64)
    tokens = np.array([rung.steps * found.tokens_of_step for rung, *_ in candidates])

    def totals(law_of: Mapping[str, Any]) -> np.ndarray:
        return sum(weight[name] * law_of[name](numbers, tokens * found.shares[name]) for name in names)

    of_all = totals({name: found.losses[name].law for name in names})
    place = int(np.argmin(of_all))
    count = min(len(found.losses[name].resampled) for name in names)
    others = [
        numbers[int(np.argmin(totals({name: found.losses[name].resampled[i] for name in names})))] for i in range(count)
    ]
    low, high = np.percentile(others, (2.5, 97.5)) if others else (math.nan, math.nan)
    rung, config, model, takes = candidates[place]
    n, d = float(numbers[place]), float(tokens[place])
    return Choice(
        rung,
        int(n),
        (float(low), float(high)),
        d,
        {name: Predicted(found.loss(name, n, d), *found.interval(name, n, d)) for name in found.losses},
        float(of_all[place]),
        takes,
        found.memory(config, model),
        found,
        place in (0, len(candidates) - 1),
    )


def sizes(ladder: Ladder, example: Seen) -> Iterator[tuple[Rung, TrainConfig, UnifiedConfig]]:
    """The sizes that there are to choose from, each as a training that is like the example beside it."""
    driver = "width" if len({size.get("width") for size in ladder.sizes}) > 1 else "layers"
    known = sorted(size[driver] for size in ladder.sizes)
    unit = 1
    if driver == "width":
        largest = max(ladder.sizes, key=lambda size: size["width"])
        unit = largest["width"] // largest["heads"] if "heads" in largest else 2 * example.model.heads
    most = known[-1] * _REACH
    wanted = np.geomspace(max(unit, known[0]), most, _CANDIDATES)
    for value in sorted({max(1, round(value / unit)) * unit for value in wanted} | set(known)):
        shape = next((s for s in ladder.sizes if s[driver] == value), None) or shape_between(
            ladder.sizes, driver, value
        )
        rung = replace(example.rung, size=shape)
        try:
            config = TrainConfig.model_validate(rung.train(ladder.literals["stages"][STAGE], ladder.base))
            yield rung, config, as_seen(example.model, config)
        except (ValidationError, ValueError):  # a shape that no model has
            continue


def as_seen(model: UnifiedConfig, config: TrainConfig) -> UnifiedConfig:
    """The model of a config, for the tokens of one that was trained."""
    fixed = {n: getattr(model, n) for n in ("vocab_size", "latent_dim", "pixel_dim", "codebook_size", "specials")}
    return UnifiedConfig(**fixed, **config.model.model_dump())


def checks(ladder: Ladder, of_kind: Sequence[Seen], kind: str) -> list[Check]:
    """The largest size held out. Empty where the others are too few to fit."""
    largest = max(seen.parameters for seen in of_kind)
    smaller = [seen for seen in of_kind if seen.parameters < largest]
    found = []
    for of_mixture in mixtures([seen for seen in of_kind if seen.parameters == largest]):
        held = max(of_mixture, key=lambda seen: seen.rung.steps)
        beside = [seen for seen in smaller if seen.rung.mixture == held.rung.mixture]
        try:
            known = curves(smaller, beside, 0, 0)
        except ValueError:
            return []
        for name, value in held.losses.items():
            told = float(known.losses[name].law(held.parameters, held.targets[name]))
            found.append(Check(kind, name, told, value))
        step = known.step_seconds(held.config, held.model)
        found.append(Check(kind, "seconds of its steps", step * held.rung.steps, held.seconds))
        if held.memory and (memory := known.memory(held.config, held.model)):
            found.append(Check(kind, "bytes of a worker", memory, held.memory))
    return found
