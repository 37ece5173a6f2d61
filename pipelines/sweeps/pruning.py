"""Which trainings are ended before their last step, by their validations. In: the validations of every trial as they
come, those of finished trials too. Out: why a trial is to be pruned.

The rules are Ray Tune's schedulers, given a trial's id and its results, as Ray Tune gives them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.pipelines.sweeps.config import PruneConfig

Validations = Sequence[tuple[int, Mapping[str, float]]]  # the step that each follows, and what it measured


@dataclass(frozen=True)
class _Contender:
    """What a scheduler knows a trial by."""

    trial_id: str


class Pruner:
    """May be called from several threads. `steps` are those of the longest training."""

    def __init__(self, config: PruneConfig, steps: int):
        self.config, self._lock = config, threading.Lock()
        self._heard: dict[int, int] = {}  # by trial, the last step of a validation
        self._why: dict[int, str] = {}
        self._scheduler = _scheduler(config, steps)

    def hear(self, number: int, validations: Validations, last: bool = False) -> str | None:
        """Take in what is new of a trial's validations; gives why it is to be pruned, then and from then on. A training
        that is at its `last` validation is not pruned."""
        with self._lock:
            contender = _Contender(str(number))
            if number not in self._heard:
                self._heard[number] = -1
                self._scheduler.on_trial_add(None, contender)
            for step, figures in validations:
                if step > self._heard[number]:
                    self._heard[number] = step
                    self._take(number, contender, step, figures, last)
            return self._why.get(number)

    def _take(self, number: int, contender: Any, step: int, figures: Mapping[str, float], last: bool) -> None:
        if self.config.name not in figures:
            known = ", ".join(figures)
            raise InputError(f"is not among what is validated: {known}", field="sweep.prune.metric")
        value = figures[self.config.name]
        if value is None or not math.isfinite(value):  # a training's own guard sees to that
            return
        decision = self._scheduler.on_trial_result(None, contender, {"step": step, "value": value})
        if decision == "STOP" and not last and number not in self._why:
            rule = "the best part of the trials" if self.config.rule == "asha" else "the median of the trials"
            self._why[number] = f"{self.config.name} {value:.4g} after step {step} is behind {rule} so far"


def _scheduler(config: PruneConfig, steps: int) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule

    common: dict[str, Any] = {
        "time_attr": "step",
        "metric": "value",
        "mode": "max" if config.direction == "maximize" else "min",
        "grace_period": config.after,
    }
    if config.rule == "asha":
        return AsyncHyperBandScheduler(
            max_t=steps, reduction_factor=config.factor or 4, stop_last_trials=False, **common
        )
    # With no time slice it never asks for the other trials' states, to give way to them.
    never: Any = math.inf
    least = config.least_trials or 3
    return MedianStoppingRule(min_samples_required=least, min_time_slice=never, hard_stop=True, **common)
