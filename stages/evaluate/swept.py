"""A sweep over settings of sampling that was measured, and the choice among them. In: of each setting its figures, as
values of items, and the seconds of a picture. Out: a `Swept`.

The choice: of each figure that is measured the best setting by its value; a setting is out where a paired test over the
items (`stages.evaluate.comparing`) calls one of its figures worse than that of the figure's best; of the others the one
that takes the fewest seconds a picture is chosen. Where each setting is worse by some figure, those with the fewest
such figures remain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omniloom.stages.evaluate.comparing import compare
from omniloom.stages.evaluate.intervals import interval
from omniloom.stages.evaluate.items import Values
from omniloom.stages.evaluate.measures import named


@dataclass(frozen=True)
class Setting:
    """One setting: the fields of `VisualSampling`, seconds a picture, figures by name, and those of which a paired test
    calls it worse than the best."""

    fields: Mapping[str, Any]
    seconds: float
    figures: Mapping[str, Values]
    worse: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.fields['num_steps']} steps, guidance {self.fields['guidance_scale']:g}, {self.fields['sampler']}"


@dataclass(frozen=True)
class Swept:
    """All settings, and which of them is chosen; `best` has by figure the best setting's number."""

    settings: tuple[Setting, ...]
    best: Mapping[str, int]
    chosen: int
    pictures: int

    @property
    def own(self) -> dict[str, Any]:
        """What the model draws by where nothing is chosen."""
        return dict(self.settings[self.chosen].fields)

    def document(self, seed: int) -> dict[str, Any]:
        """As literals."""
        return {
            "chosen": self.own,
            "pictures": self.pictures,
            "settings": [
                {
                    **setting.fields,
                    "seconds": setting.seconds,
                    "worse": list(setting.worse),
                    **{name: _told(values, seed) for name, values in setting.figures.items()},
                }
                for setting in self.settings
            ],
        }


def _told(values: Values, seed: int) -> dict[str, Any]:
    low, high = interval(values, seed) or (None, None)
    return {"value": values.mean, "low": low, "high": high}


def choose(settings: Sequence[Setting], pictures: int, seed: int) -> Swept:
    """By the rule above."""
    best = {name: _best(settings, name) for name in settings[0].figures}
    judged = tuple(
        Setting(setting.fields, setting.seconds, setting.figures, _worse(settings, setting, best, seed))
        for setting in settings
    )
    # The best of one figure may be worse by another: where every setting is, the fewest figures count.
    least = min(len(setting.worse) for setting in judged)
    left = [number for number, setting in enumerate(judged) if len(setting.worse) == least]
    return Swept(judged, best, min(left, key=lambda number: judged[number].seconds), pictures)


def _best(settings: Sequence[Setting], name: str) -> int:
    figure = named(name)
    sign = -1 if figure and figure.better == "lower" else 1
    return max(range(len(settings)), key=lambda number: sign * settings[number].figures[name].mean)


def _worse(settings: Sequence[Setting], setting: Setting, best: Mapping[str, int], seed: int) -> tuple[str, ...]:
    found = []
    for name, number in best.items():
        pair = ({name: settings[number].figures[name]}, {name: setting.figures[name]})
        if any(figure.decision == "worse" for figure in compare(*pair, [name], seed).figures):
            found.append(name)
    return tuple(found)
