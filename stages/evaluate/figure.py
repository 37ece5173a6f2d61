"""What a figure of `evaluate` is: what it means, which way is better, and what it is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from omniloom.models.unified.representations import VisualObjective

LOW, HIGH = "_low", "_high"  # behind a figure's name: the ends of its interval
LEAST_PICTURES = 100  # for a Fréchet distance: of fewer, the means and covariances say little

Chance = Callable[[Mapping[str, Any]], Any]  # from all figures: a number, or None where it is not known


Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Figure:
    """`better` is None for what is no measure: a count, or what another figure is held against. `chance` is what
    guessing gets, or another mark to hold the figure against, in the words of `mark`. `asks` are the fields of the
    config that have to be at least so large for the figure to be measured, and `network` is the one of the config's
    `features` that it needs, or the pipeline's `scorer`; `by_objective` figures are of each objective
    that was trained on pictures, of `objectives` that have them, and have its name behind theirs where there are
    several. Figures that are better one
    way are means over items, with an interval, unless they are of the whole corpus (`by_item`); `of_model` is False of
    what tells of the data alone."""

    meaning: str
    better: Better | None = None
    chance: Chance = lambda metrics: None
    mark: str = "chance"
    asks: Mapping[str, int] = field(default_factory=dict)
    by_objective: bool = False
    of_text: bool = False
    objectives: Callable[[VisualObjective], bool] = lambda row: True
    network: str = ""
    by_item: bool = True
    of_model: bool = True

    def is_of(self, row: VisualObjective) -> bool:
        """Whether it may have the objective's name behind its own."""
        return self.by_objective and self.objectives(row)


def given(name: str) -> Chance:
    """The figure of that name."""
    return lambda metrics: metrics.get(name)
