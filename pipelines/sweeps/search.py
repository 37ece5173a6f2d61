"""Which values the next trial has. In: the sweep, and what came out of the trials before. Out: values, one trial after
another.

Optuna is asked and told through Ray Tune's `OptunaSearch`. It is told of trials in the order of their numbers, and
asked for trial n once it was told of all up to n - `concurrent`: what it chooses follows from the seed and from what
came out, never from which trial ended first.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from omniloom.pipelines.sweeps.config import SpaceConfig, SweepConfig
from omniloom.pipelines.sweeps.spaces import Values, rounded

_GOAL = "goal"


class Search(Protocol):
    def ask(self, number: int) -> Values:
        """The values of the trial of that number, from 1."""
        ...

    def tell(self, number: int, value: float | None) -> None:
        """What came out of a trial; None of one that failed or was pruned."""
        ...


class Optuna:
    """Tree-structured Parzen estimators (Bergstra et al., NeurIPS 2011) by Optuna, through Ray Tune."""

    def __init__(self, sweep: SweepConfig):
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        logging.getLogger("ray.tune.search.optuna").setLevel(logging.ERROR)
        self._spaces = sweep.fields
        space: dict[str, Any] = {path: _distribution(space) for path, space in sweep.fields.items()}
        mode = "max" if sweep.goal.sign > 0 else "min"
        self._search = OptunaSearch(space=space, metric=_GOAL, mode=mode, seed=sweep.seed or 0)

    def ask(self, number: int) -> Values:
        suggested = self._search.suggest(str(number))
        assert suggested is not None
        return {path: _value(space, suggested[path]) for path, space in self._spaces.items()}

    def tell(self, number: int, value: float | None) -> None:
        self._search.on_trial_complete(str(number), None if value is None else {_GOAL: value}, error=value is None)


def _distribution(space: SpaceConfig) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choice is not None:
        return CategoricalDistribution(range(len(space.choice)))  # by their places: values may be mappings
    if space.integers:
        return IntDistribution(*space.integers)
    low, high = space.ends or (0.0, 1.0)
    return FloatDistribution(low, high, log=bool(space.log_uniform))


def _value(space: SpaceConfig, suggested: Any) -> Any:
    if space.choice is not None:
        return space.choice[suggested]
    return int(suggested) if space.integers else float(rounded(suggested, space))
