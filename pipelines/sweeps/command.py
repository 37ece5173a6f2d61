"""`omniloom plan` and `omniloom run` of a config that has a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from omniloom.infra.errors import OmniLoomError
from omniloom.infra.secrets import redact
from omniloom.pipelines.commands.about import UI_PORT
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.selection import Selection
from omniloom.pipelines.sweeps import foretelling
from omniloom.pipelines.sweeps.folder import PAGE, RECORD, TABLE, Folder
from omniloom.pipelines.sweeps.results import Results
from omniloom.pipelines.sweeps.trial_stages import trial_stages, trials_of
from omniloom.pipelines.sweeps.trials import Trial, Trials
from omniloom.pipelines.tables import example_request
from omniloom.pipelines.views.events import View


class TrialsFailed(OmniLoomError):
    """The sweep is through, and some of its trials failed."""


def print_plan(
    path: str, overrides: Sequence[str], base: PipelineConfig, selection: Selection, as_json: bool = False
) -> None:
    from omniloom.pipelines.sweeps.tables import Planned
    from omniloom.pipelines.tables import show

    planned = Planned(Trials(path, overrides, base, selection))
    if as_json:
        print(json.dumps(planned.to_dict(), indent=2))
        return
    show(planned.table())
    for line in planned.lines():
        print(line)


def print_status(path: str, overrides: Sequence[str], base: PipelineConfig, as_json: bool = False) -> None:
    """The stages of all trials, each artifact once, and what is known of each trial."""
    from omniloom.pipelines.tables import show, status_row, status_table

    assert base.sweep is not None
    trials, folder = trials_of(path, overrides, base), Folder(base)
    rows = [status_row(one.label, one.planned) for one in trial_stages(trials)]
    came = {row["trial"]: row for row in folder.known()}
    titles = {number: row["title"] for number, row in came.items()} | {trial.number: trial.title for trial in trials}
    told = [{"trial": n, "title": title, **_outcome(came.get(n))} for n, title in sorted(titles.items())]
    if as_json:
        print(json.dumps(redact({"stages": rows, "trials": told, "folder": folder.uri}), indent=2))
        return
    show(status_table(base, rows))
    for row in told:
        figure = "" if row["figure"] is None else f", {base.sweep.goal.metric} {row['figure']:.4g}"
        print(
            redact(
                f"trial {row['trial']}: {row['title']}: {row['status']}{figure}" + (row["why"] and f": {row['why']}")
            )
        )
    if not trials:
        print("no trial has run yet; each is chosen by what came out before")
    if came:
        print(f"sweep:  {redact(folder.uri)}")


def _outcome(noted: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of a trial, as the sweep's last run noted it down."""
    if noted is None:
        return {"status": "not run", "figure": None, "why": ""}
    return {key: noted[key] for key in ("status", "figure", "why")}


def run(
    path: str, overrides: Sequence[str], base: PipelineConfig, selection: Selection, view: View | None = None
) -> Plan | None:
    """Run the sweep and say how it ended; gives the plan of the best trial. TrialsFailed where trials failed, once all
    are through."""
    from omniloom.pipelines.display import Display
    from omniloom.pipelines.sweeps import running
    from omniloom.pipelines.sweeps.tables import results_table

    trials, display = Trials(path, overrides, base, selection), Display(view)
    found, best = running.run(trials, display)
    display.last("result", in_text(results_table(found)), **found.to_dict())
    for line in closing_lines(found, best, Folder(base).uri, path, display.page):
        display.last("result", line)
    if found.failed:
        numbers = " and ".join(str(row.number) for row in found.failed)
        raise TrialsFailed(f"{len(found.failed)} of {trials.count} trials failed: {numbers}; the others stand above")
    return best.plan if best else None


def closing_lines(found: Results, best: Trial | None, folder: str, path: str, page: str | None) -> list[str]:
    """What ended before its end and why, which trial is best and how surely, and where to look."""
    lines = [f"trial {row.number} ({row.title}) {row.status}: {row.why}" for row in found.rows if row.why]
    lines += [f"log of trial {row.number}: {row.log}" for row in found.failed if row.log]
    if best:
        lines += [f"best:   trial {best.number}: {best.title}", f"test:   {found.verdict}"]
    lines += [f"told:   {line}" for line in foretelling.lines(found.foretold, found.goal.metric)]
    lines += [f"report: {folder}/{PAGE}", f"table:  {folder}/{TABLE}, {RECORD}"]
    if best and (model := best.plan.last("model")) and model.artifact:
        made = model.artifact.file("model")
        lines += [f"model:  {made}", f"sample: omniloom sample {made} {example_request(model.artifact)}"]
    if page:
        served = page.startswith("http")
        lines.append("MLflow: " + (page if served else f"omniloom ui {path}, then http://127.0.0.1:{UI_PORT}{page}"))
    return lines


def in_text(table: Table) -> str:
    """As `tables.show` prints it."""
    console = Console()
    if not console.is_terminal:
        console.width = 200
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip("\n")
