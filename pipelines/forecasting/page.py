"""What a forecast says: tables on a terminal, one page, a record, and the config of the best model. In: a ladder and
what its trainings came to."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from omniloom.infra.nodes import gib
from omniloom.pipelines.forecasting.choosing import Check, Choice, checks, choose
from omniloom.pipelines.forecasting.rungs import STAGE, Ladder, Rung
from omniloom.pipelines.forecasting.seen import GOAL, Seen
from omniloom.pipelines.takes import duration


@dataclass(frozen=True)
class Report:
    """`choices`: by objective, the best first. `config`: the literals of the pipeline with the first of them."""

    name: str
    budget: float
    unit: str
    devices: float
    lr: float | None
    seen: Sequence[Seen]
    choices: Sequence[tuple[str, Choice]]
    checks: Sequence[Check]
    config: Mapping[str, Any]
    folder: str = ""

    @property
    def best(self) -> Choice:
        return self.choices[0][1]

    def summary(self) -> Iterator[str]:
        best, (low, high) = self.best, self.best.parameters_interval
        yield (
            f"budget: {self.budget:.3g} {self.unit}-hours of training, "
            f"{duration(self.budget * 3600 / self.devices)} on {self.devices:g} {self.unit}s; the ladder took "
            f"{sum(s.seconds + s.around for s in self.seen) * self.devices / 3600:.3g} {self.unit}-hours"
        )
        if self.lr is not None:
            yield f"learning rate: {self.lr:g}, of the base of muP"
        interval = "" if math.isnan(low) else f" (95% interval {low:,.0f} to {high:,.0f})"
        yield f"best size: {best.parameters:,} parameters{interval}: {_words(best.rung)}, {best.tokens:,.0f} tokens"
        if best.at_border:
            yield "note: it is the smallest or largest size that was looked at; the best may lie beyond"
        for name, fitted in best.curves.losses.items():
            if blind := [kind for kind, is_known in fitted.law.knows.items() if not is_known]:
                yield f"note: the ladder does not tell how {name} follows {' and '.join(blind)}; it is short or noisy"
        memory = f"; {gib(best.memory)} a worker" if best.memory else ""
        yield f"takes: {duration(best.seconds)}{memory}"
        if not self.checks:
            yield "note: four sizes or more would let the largest be predicted from the others, as a check"
        for check in self.checks:
            yield f"check: {_check(check)}"

    def tables(self) -> list[dict[str, Any]]:
        rungs = [
            [_words(s.rung), s.parameters, round(s.tokens), *_cells(s, self._names), s.step_seconds, _memory(s.memory)]
            for s in self.seen
        ]
        columns = ["training", "parameters", "tokens", *self._names, "seconds a step", "memory"]
        predicted = [
            [kind, _words(choice.rung), choice.parameters, name, found.value, f"{found.low:.4g} to {found.high:.4g}"]
            for kind, choice in self.choices
            for name, found in choice.losses.items()
        ]
        laws = [
            [kind, name, str(fitted.law)]
            for kind, choice in self.choices
            for name, fitted in choice.curves.losses.items()
        ]
        held = [[c.kind, c.figure, c.predicted, c.seen, f"{c.off:+.1%}"] for c in self.checks]
        return [
            {
                "caption": "What the budget buys",
                "columns": ["objective", "training", "parameters", "figure", "predicted", "95% interval"],
                "rows": predicted,
            },
            {
                "caption": "The largest size, predicted from the others",
                "columns": ["objective", "figure", "predicted", "seen", "off"],
                "rows": held,
            },
            {
                "caption": "Curves: N parameters, D targets trained on",
                "columns": ["objective", "figure", "law"],
                "rows": laws,
            },
            {"caption": "The ladder", "columns": columns, "rows": rungs},
        ]

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for seen in self.seen for name in seen.losses))

    def shown(self) -> Iterator[Table]:
        for own in self.tables():
            if own["rows"]:
                table = Table(title=own["caption"], title_justify="left", box=None, pad_edge=False)
                for column in own["columns"]:
                    table.add_column(column, overflow="fold")
                for row in own["rows"]:
                    table.add_row(*(_shown(value) for value in row))
                yield table

    def html(self) -> str:
        from omniloom.stages.reporting import report

        verdict = " ".join(f"{line[:1].upper()}{line[1:]}." for line in self.summary())
        return report.render(
            {
                "title": f"{self.name}: forecast for {self.budget:.3g} {self.unit}-hours",
                "verdict": {"text": verdict, "passed": None},
                "headline": {name: found.value for name, found in self.best.losses.items()},
                "sections": [
                    {"title": "Forecast", "tables": [table for table in self.tables() if table["rows"]]},
                    {"title": "Curves", "curves": self._charts()},
                ],
            }
        )

    def _charts(self) -> list[dict[str, Any]]:
        """By figure, the loss of each size over the tokens: seen, and the law."""
        charts = []
        for kind, choice in self.choices:
            own = [seen for seen in self.seen if _kind(seen.rung) == kind]
            for name in choice.losses:
                series: dict[str, list[tuple[float, float]]] = {}
                for one in own:
                    if name in one.losses:
                        label = f"{one.parameters:,}"
                        series.setdefault(label, []).append((math.log10(one.targets[name]), one.losses[name]))
                        law = float(choice.curves.losses[name].law(one.parameters, one.targets[name]))
                        series.setdefault(f"{label}, law", []).append((math.log10(one.targets[name]), law))
                charts.append({"title": f"{kind}: {name}", "x": "log10 of targets", "y": name, "series": series})
        return charts

    def to_dict(self) -> dict[str, Any]:
        return {
            "pipeline": self.name,
            "budget_hours": self.budget,
            "unit": f"{self.unit}-hours",
            "learning_rate": self.lr,
            "best": [
                {
                    "objective": kind,
                    "size": dict(choice.rung.size),
                    "steps": choice.rung.steps,
                    "mixture": choice.rung.mixture,
                    "parameters": choice.parameters,
                    "parameters_interval": list(choice.parameters_interval),
                    "tokens": choice.tokens,
                    "seconds": choice.seconds,
                    "memory_bytes": choice.memory,
                    "losses": {name: asdict(found) for name, found in choice.losses.items()},
                    "laws": {name: asdict(fitted.law) for name, fitted in choice.curves.losses.items()},
                }
                for kind, choice in self.choices
            ],
            "checks": [{**asdict(check), "off": check.off} for check in self.checks],
            "ladder": [
                {
                    "size": dict(one.rung.size),
                    "steps": one.rung.steps,
                    "mixture": one.rung.mixture,
                    "objectives": one.rung.objectives,
                    "parameters": one.parameters,
                    "tokens": one.tokens,
                    "losses": dict(one.losses),
                    "targets": dict(one.targets),
                    "seconds": one.seconds,
                    "around_seconds": one.around,
                    "memory_bytes": one.memory,
                }
                for one in self.seen
            ],
        }


def made(
    ladder: Ladder, by_kind: Sequence[Sequence[Seen]], budget: float, unit: str, devices: float, lr: float | None
) -> Report:
    """InputError where the budget or the ladder is too small."""
    from omniloom.infra.errors import InputError

    seconds, choices, held = budget * 3600 / devices, [], []
    for of_kind in by_kind:
        kind = _kind(of_kind[0].rung)
        try:
            choices.append((kind, choose(ladder, of_kind, seconds)))
        except ValueError as error:
            raise InputError(f"too few trainings for a curve: {error}", field="forecast.sizes") from None
        held += checks(ladder, of_kind, kind)
    choices.sort(key=lambda pair: pair[1].losses[GOAL].value if GOAL in pair[1].losses else 0.0)
    config = copy.deepcopy(dict(ladder.literals))
    config.pop("forecast", None)
    rung = choices[0][1].rung
    config["stages"][STAGE] = rung.train(config["stages"][STAGE], ladder.base)
    seen = [one for of_kind in by_kind for one in of_kind]
    return Report(ladder.config.name, budget, unit, devices, lr, seen, choices, held, config)


def _kind(rung: Rung) -> str:
    return "as the config" if rung.objectives is None else ", ".join(rung.objectives) or "text alone"


def _words(rung: Rung) -> str:
    parts = [f"{name} {value}" for name, value in rung.size.items()] + [f"{rung.steps:,} steps"]
    if rung.mixture is not None:
        parts.append(f"mixture {rung.mixture}")
    return ", ".join(parts)


def _cells(seen: Seen, names: Sequence[str]) -> list[Any]:
    return [seen.losses.get(name) for name in names]


def _memory(count: float | None) -> str | None:
    return None if count is None else gib(count)


def _check(check: Check) -> str:
    told, found = (gib(v) if check.figure.startswith("bytes") else f"{v:.4g}" for v in (check.predicted, check.seen))
    return f"{check.figure} of the largest size, from the others: {told}, was {found} ({check.off:+.1%})"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
