"""What MLflow's pages tell of a run at a glance: its name, who started it from which commit, why its stages ran, where
its report and its model are. In: a plan, before and after it has run. Out: a title, tags, Markdown.
"""

from __future__ import annotations

import getpass
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any

from omniloom.infra.secrets import redact
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.reasons import changed_fields
from omniloom.pipelines.tables import example_request

DESCRIPTION = "mlflow.note.content"
_TITLE = 120  # characters
_CHANGED = "config: "
_KINDS = ("image", "video", "text", "document")
_SPLITS = ("train", "validation", "test")


def title(plan: Plan) -> str:
    """The pipeline's name with what was changed since its stages were made last: `mine: train.optimizer.lr 0.002 ->
    0.0003`."""
    changes = [f"{field} {before} -> {now}" for field, before, now in _changes(plan)]
    if not changes:
        changes = [
            f"{planned.name} {planned.reason}"
            for planned in plan.to_execute
            if not planned.reason.startswith("input changed")
        ][:1]
        if {planned.reason for planned in plan.to_execute} == {"never ran"}:
            changes = ["first run"]
    text = f"{plan.config.name}: {'; '.join(changes)}" if changes else plan.config.name
    return redact(text if len(text) <= _TITLE else text[: _TITLE - 1] + "\N{HORIZONTAL ELLIPSIS}")


def tags(plan: Plan, revision: str | None) -> dict[str, str]:
    """MLflow's own tags of the pipeline's run: user, source, commit, and a description of what is to run."""
    return origin(revision) | {DESCRIPTION: reasons(plan)}


def origin(revision: str | None) -> dict[str, str]:
    """MLflow's own tags of any run: user, source, commit."""
    # Overrides are among the parameters, without the secrets that they may hold.
    command = ["omniloom", *(word for word in sys.argv[1:] if "=" not in word)]
    found = {"mlflow.source.name": redact(shlex.join(command)), "mlflow.source.type": "LOCAL"}
    try:
        found["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        pass
    return found | ({"mlflow.source.git.commit": revision} if revision else {})


def description(plan: Plan, why: str, differs: str, link: Callable[[str, str], str | None]) -> str:
    """Markdown: what came out, what the config changed, what data it was made of, and for which reasons stages ran.
    `why` and `differs` are `reasons` and `differences` of the plan before it ran; `link` gives the page of a run's file
    by the run's id and the file's name, where that is known."""
    evaluation, model, records = (plan.last(role) for role in ("evaluation", "model", "records"))
    lines = []
    if evaluation and (made := evaluation.artifact):
        passed = {1: "Gate passed.", 0: "Gate not passed.", None: "No gate given."}
        run_id = made.manifest.get("mlflow_run_id")
        page, file = link(run_id, "report.html") if run_id else None, made.file("report.html")
        report = f"[Report]({page}): `{file}`" if page else f"Report: `{file}`"
        lines.append(f"**{passed[made.metrics.get('gate_passed')]}** {report}")
    if model and model.artifact:
        folder = model.artifact.file("model")
        lines.append(f"Sample from it: `omniloom sample {folder} {example_request(model.artifact)}`")
    if differs:
        lines.append(differs)
    if records and records.artifact:
        lines.append(data_card(records.artifact.metrics))
    return redact("\n\n".join([*lines, why]))


def differences(plan: Plan) -> str:
    """Markdown: a table of what the config changed since its stages were made last; empty where it changed nothing."""
    rows = [f"| {' | '.join(cell.replace('|', '/') for cell in change)} |" for change in _changes(plan)]
    return "\n".join(["| config | before | now |", "|---|---|---|", *rows]) if rows else ""


def _changes(plan: Plan) -> list[tuple[str, str, str]]:
    """The fields that made stages run, each with what it was and is."""
    return [
        (f"{planned.name}.{field}", before, now)
        for planned in plan.to_execute
        if planned.known and planned.reason.startswith(_CHANGED)
        for field, before, now in changed_fields(planned, planned.known)
    ]


def data_card(counts: Mapping[str, Any]) -> str:
    """One line of what the records hold: kinds, splits, and what was left out."""
    kinds = [f"{_count(counts, f'records_{kind}')} {kind}" for kind in _KINDS if counts.get(f"records_{kind}")]
    splits = [f"{split} {_count(counts, f'records_{split}')}" for split in _SPLITS if f"records_{split}" in counts]
    left = [f"{_count(counts, name)} {name}" for name in ("rejects", "duplicates", "uncaptioned") if counts.get(name)]
    parts = [", ".join(part) for part in (kinds, splits, left) if part]
    return f"Data: {_count(counts, 'records')} records: " + "; ".join(parts)


def _count(counts: Mapping[str, Any], name: str) -> str:
    return f"{counts[name]:,}" if name in counts else "?"


def reasons(plan: Plan) -> str:
    """Markdown: what is to run, and why."""
    return redact("\n".join(f"- **{planned.name}**: {planned.reason}" for planned in plan.to_execute))
