"""`omniloom forecast`: train the ladder, as a sweep, and say what a budget buys."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.infra.figures import finite
from omniloom.infra.secrets import redact
from omniloom.pipelines.config import load, naming, raw
from omniloom.pipelines.forecasting.rungs import STAGE, Ladder, Rung
from omniloom.pipelines.paths import with_absolute_paths
from omniloom.pipelines.selection import Selection
from omniloom.pipelines.sweeps.command import TrialsFailed
from omniloom.pipelines.sweeps.trials import Trials

if TYPE_CHECKING:
    from omniloom.pipelines.forecasting.page import Report
    from omniloom.pipelines.forecasting.seen import Seen
    from omniloom.pipelines.views.events import View

BEST, LADDER, RECORD, PAGE = "best.yaml", "ladder.yaml", "forecast.json", "report.html"
_UNITS = {"h": 1.0, "m": 1 / 60, "min": 1 / 60, "s": 1 / 3600, "d": 24.0}


def hours_of(text: str) -> float:
    """`2h`, `90m`, `1.5` (hours), `2d`. InputError for others."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(h|min|m|s|d)?", text.strip())
    if not match or not float(match[1]):
        raise InputError(f"expected hours, such as 2h or 90m, got {text!r}", field="--budget")
    return float(match[1]) * _UNITS[match[2] or "h"]


def ladder_of(path: str, overrides: Sequence[str]) -> Ladder:
    config = load(path, list(overrides), files=True)
    if config.sweep:
        raise InputError("a forecast is of one pipeline; sweep=null leaves the sweep out", field="sweep")
    with naming(config):
        return Ladder(config, with_absolute_paths(raw(path, list(overrides)), config))


def plan(path: str, overrides: Sequence[str]) -> None:
    """Print which trainings the ladder has and what they take. Starts nothing and writes nothing."""
    from omniloom.pipelines.sweeps.tables import Planned
    from omniloom.pipelines.tables import show

    ladder = ladder_of(path, overrides)
    for rungs in filter(None, (ladder.tries(), ladder.rungs())):
        with _trials(ladder, rungs) as trials:
            planned = Planned(trials)
            show(planned.table())
            for line in planned.lines():
                print(line)


def forecast(path: str, overrides: Sequence[str], budget: float, view: View | None = None) -> Report:
    """Train what of the ladder is not there yet, and write and give what follows from it. `budget` in hours of devices.
    TrialsFailed where a training failed."""
    from omniloom.pipelines.forecasting import page
    from omniloom.pipelines.forecasting.choosing import devices, kinds

    ladder, lr = ladder_of(path, overrides), None
    with naming(ladder.config):
        if tries := ladder.tries():
            lr = _best_rate(ladder, _train(ladder, tries, view))
        seen = _train(ladder, ladder.rungs(lr), view)
        unit, count = devices(ladder.train)
        report = page.made(ladder, kinds(seen), budget, unit, count, lr)
    folder = storage.join(ladder.config.storage, "forecasts", ladder.config.name, _id(ladder))
    files = {
        BEST: yaml.safe_dump(report.config, sort_keys=False, allow_unicode=True, width=110),
        LADDER: yaml.safe_dump(ladder.sweep(ladder.rungs(lr)), sort_keys=False, allow_unicode=True, width=110),
        RECORD: json.dumps(finite(report.to_dict()), indent=2),
        PAGE: report.html(),
    }
    for name, text in files.items():
        storage.write_bytes(storage.join(folder, name), redact(text).encode())
    return replace(report, folder=folder)


def _id(ladder: Ladder) -> str:
    told = [ladder.literals["stages"], ladder.section.model_dump(mode="json"), ladder.base]
    return hashlib.sha256(json.dumps(redact(told), sort_keys=True, default=str).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _trials(ladder: Ladder, rungs: Sequence[Rung]) -> Iterator[Trials]:
    """The sweep of these rungs, read from a file as a user's is, which is there within the block."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, LADDER)
        file.write_text(yaml.safe_dump(ladder.sweep(rungs), sort_keys=False, allow_unicode=True), encoding="utf-8")
        yield Trials(str(file), (), load(str(file), files=True), Selection())


def _train(ladder: Ladder, rungs: Sequence[Rung], view: View | None) -> list[Seen]:
    """Bring the rungs up to date, as trials of a sweep, and read what they came to."""
    from omniloom.pipelines.display import Display
    from omniloom.pipelines.forecasting.seen import read
    from omniloom.pipelines.sweeps import running

    goal = ladder.section.goal
    with _trials(ladder, rungs) as trials:
        found, _ = running.run(trials, Display(view))
        if bad := [row for row in found.rows if row.status != "finished"]:
            told = "; ".join(f"training {row.number} {row.status}: {row.why}" for row in bad)
            raise TrialsFailed(f"{len(bad)} of {trials.count} trainings of the ladder have no end: {told}")
        seen = []
        for rung, trial in zip(rungs, trials.known, strict=True):
            judged = trial.plan[goal.stage].artifact if goal else None
            made = trial.plan[STAGE].artifact
            assert made is not None
            seen.append(read(rung, getattr(trial.config.stages, STAGE), made, judged, goal))
        return seen


def _best_rate(ladder: Ladder, seen: Sequence[Seen]) -> float:
    """That of the least loss, weighted."""
    from omniloom.pipelines.forecasting.choosing import weights

    def total(one: Seen) -> float:
        names = [name for name in one.losses if name.endswith("_loss")]
        return sum(weight * one.losses[name] for name, weight in weights(ladder, one.config, names).items())

    best = min(seen, key=total).rung.lr
    assert best is not None
    return best
