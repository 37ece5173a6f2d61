"""What MLflow's pages tell of a run at a glance: its name, who started it from which commit, why its stages ran, where
its report and its model are. In: a plan, before and after it has run. Out: a title, tags, Markdown.
"""

from __future__ import annotations

import getpass
import shlex
import sys

from omniloom.infra.secrets import redact
from omniloom.pipelines.plan import Plan

DESCRIPTION = "mlflow.note.content"
_TITLE = 120  # characters
_CHANGED = "config: "


def title(plan: Plan) -> str:
    """The pipeline's name with what was changed since its stages were made last: `mine: train.optimizer.lr 0.002 ->
    0.0003`."""
    changes = [
        f"{planned.name}.{change}"
        for planned in plan.to_execute
        if planned.reason.startswith(_CHANGED)
        for change in planned.reason.removeprefix(_CHANGED).split(", ")
    ]
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
    """MLflow's own tags: user, source, commit, and a description of what is to run."""
    # Overrides are among the parameters, without the secrets that they may hold.
    command = ["omniloom", *(word for word in sys.argv[1:] if "=" not in word)]
    found = {
        "mlflow.source.name": redact(shlex.join(command)),
        "mlflow.source.type": "LOCAL",
        DESCRIPTION: reasons(plan),
    }
    try:
        found["mlflow.user"] = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        pass
    return found | ({"mlflow.source.git.commit": revision} if revision else {})


def description(plan: Plan, why: str) -> str:
    """Markdown: what ran, for the `reasons` that there were, and what came out of it."""
    evaluation, model = plan.last("evaluation"), plan.last("model")
    lines = [why]
    if evaluation and evaluation.artifact:
        lines.append(f"Report: `{evaluation.artifact.file('report.html')}`")
    if model and model.artifact:
        lines.append(f"Model: `{model.artifact.file('model')}`")
        lines.append(f"Sample from it: `omniloom sample {model.artifact.file('model')}`")
    return redact("\n\n".join(lines))


def reasons(plan: Plan) -> str:
    """Markdown: what is to run, and why."""
    return redact("\n".join(f"- **{planned.name}**: {planned.reason}" for planned in plan.to_execute))
