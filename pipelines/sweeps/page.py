"""A sweep as one HTML file: the table, the figure over trials and over each field, a validation curve of every trial,
and what was made once for several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from omniloom.pipelines.sweeps import foretelling
from omniloom.pipelines.sweeps.results import Result, Results
from omniloom.pipelines.sweeps.tables import numbers, ordered
from omniloom.pipelines.sweeps.trials import Trial, Trials, short_names, shown

_CURVES = 3  # charts of validations
_FIGURES = 20  # of earlier stages


def render(found: Results, trials: Trials, by_number: Mapping[int, Trial]) -> str:
    from omniloom.stages.reporting import report

    way = "higher" if found.goal.sign > 0 else "lower"
    best = found.best
    verdict = {"text": _verdict(found), "passed": None}
    sections: list[dict[str, Any]] = [
        {"title": "Trials", "text": f"By {found.goal.metric}; {way} is better.", "tables": [_table(found)]},
        {"title": "The figure", "curves": [_over_trials(found), *_over_fields(found)]},
    ]
    if found.foretold:
        sections.append(_foretold(found))
    if curves := _validations(found):
        text = "Curves of different losses, as those of different objectives, cannot be held against each other."
        sections.append({"title": "Validations", "text": text, "curves": curves})
    sections.append({"title": "What was made", "tables": [_made(found, by_number)]})
    if ended := [row for row in found.rows if row.why]:
        why = {"columns": ["trial", "status", "why"], "rows": [[row.number, row.status, row.why] for row in ended]}
        sections.append({"title": "Why trials ended", "tables": [why]})
    return report.render(
        {
            "title": f"{found.pipeline}: sweep of {trials.count} trials",
            "facts": {"method": trials.sweep.method, "sweep": found.id, "storage": trials.base.storage},
            "verdict": verdict,
            "headline": {found.goal.name: best.figure.value} if best and best.figure else {},
            "sections": sections,
        }
    )


def _verdict(found: Results) -> str:
    first = found.best
    head = f"Best is trial {first.number}: {first.title}. " if first else ""
    verdict = found.verdict
    return f"{head}{verdict[:1].upper()}{verdict[1:]}."


def _table(found: Results) -> dict[str, Any]:
    names = short_names(dict.fromkeys(path for row in found.rows for path in row.values))
    rows = [
        [
            row.number,
            *(shown(row.values[path]) if path in row.values else None for path in names),
            *numbers(row),
            row.status,
            round(row.seconds, 1),
        ]
        for row in ordered(found)
    ]
    return {"columns": ["trial", *names.values(), found.goal.name, "95% interval", "status", "seconds"], "rows": rows}


def _foretold(found: Results) -> dict[str, Any]:
    """The strongest figures of the stages that `foretell` names."""
    rows = [
        [
            one.metric,
            f"{one.rank:+.2f}",
            f"{one.low:+.2f} to {one.high:+.2f}",
            one.pick,
            f"{one.behind:.1%}",
            f"{one.time:.0%}",
        ]
        for one in found.foretold[:_FIGURES]
    ]
    columns = ["figure", "rank correlation", "95% interval", "picks trial", "behind the best", "of the time"]
    return {
        "title": "What foretold it",
        "text": " ".join(foretelling.lines(found.foretold, found.goal.metric)) + ".",
        "tables": [{"columns": columns, "rows": rows}],
    }


def _judged(found: Results) -> list[Result]:
    return [row for row in found.rows if row.figure]


def _over_trials(found: Results) -> dict[str, Any]:
    """The figure of each trial with the ends of its interval, and the best so far."""
    so_far = -math.inf
    figures: list[tuple[float, float]] = []
    ends: list[tuple[float, float]] = []
    best: list[tuple[float, float]] = []
    for row in _judged(found):
        assert row.figure
        so_far = max(so_far, found.goal.sign * row.figure.value)
        best.append((row.number, found.goal.sign * so_far))
        figures.append((row.number, row.figure.value))
        if row.figure.low is not None and row.figure.high is not None:
            ends += [(row.number, row.figure.low), (row.number, row.figure.high), (row.number, math.nan)]
    series = {found.goal.name: _apart(figures), **({"95% interval": ends} if ends else {}), "best so far": best}
    return {"title": "Over trials", "x": "trial", "y": found.goal.name, "series": series}


def _over_fields(found: Results) -> list[dict[str, Any]]:
    """The figure over each field: by the number, by its power of ten where the numbers span some, by the place among
    the values where they are no numbers."""
    charts = []
    for path, name in short_names(dict.fromkeys(path for row in found.rows for path in row.values)).items():
        rows = [row for row in _judged(found) if path in row.values]
        values = [row.values[path] for row in rows]
        axis, note = name, ""
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            known = list(dict.fromkeys(map(shown, values)))
            places = [known.index(shown(value)) + 1.0 for value in values]
            note = "; ".join(f"{place}: {value}" for place, value in enumerate(known, 1))
        elif values and min(values) > 0 and max(values) >= 20 * min(values):
            places, axis = [math.log10(value) for value in values], f"log10 of {name}"
        else:
            places = [float(value) for value in values]
        points = sorted((place, row.figure.value) for place, row in zip(places, rows) if row.figure)
        if len({place for place, _ in points}) > 1:
            series = {found.goal.name: _apart(points)}
            charts.append({"title": f"Over {name}", "x": axis, "y": found.goal.name, "series": series, "note": note})
    return charts


def _apart(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no line joins."""
    return [part for point in points for part in (point, (point[0], math.nan))][:-1]


def _validations(found: Results) -> list[dict[str, Any]]:
    """A chart for each figure that trials validate by, with a curve of each trial."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in found.rows:
        for step, figures in row.validations:
            for name, value in figures.items():
                of_trial = curves.setdefault(name, {}).setdefault(f"{row.number}: {row.title}"[:60], [])
                of_trial.append((step, math.nan if value is None else value))
    most = sorted(curves.items(), key=lambda item: -len(item[1]))[:_CURVES]
    return [
        {"title": name.replace("_", " "), "x": "step", "series": series, "log": "loss" in name} for name, series in most
    ]


def _made(found: Results, by_number: Mapping[int, Trial]) -> dict[str, Any]:
    """Each artifact once, with the trials that use it and when it was made."""
    users: dict[tuple[str, str], list[int]] = {}
    for row in found.rows:
        for made in row.artifacts.items():
            users.setdefault(made, []).append(row.number)
    rows = []
    for (stage, fingerprint), of in users.items():
        artifact = by_number[of[0]].plan[stage].artifact
        times = artifact.manifest["times"] if artifact else {}
        rows.append([stage, fingerprint[:12], ", ".join(map(str, of)), times.get("ended"), times.get("seconds")])
    return {"columns": ["stage", "artifact", "trials", "made", "seconds"], "rows": rows}
