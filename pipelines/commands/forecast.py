"""`forecast`: the best model for a budget, from a ladder of small trainings."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from omniloom.pipelines import signals
from omniloom.pipelines.commands.arguments import AsJson, ConfigPath, Overrides


def forecast(
    config: ConfigPath,
    overrides: Overrides = None,
    budget: Annotated[
        str,
        typer.Option(
            metavar="HOURS",
            help="Hours of the training's devices together, GPU-hours where its workers have GPUs and CPU-hours where "
            "not: 2h, 90m, 1.5, 2d.",
        ),
    ] = "",
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the ladder's trainings and what they take; starts nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a ladder of small models and predict the best one for a budget.

    Sizes, steps, mixtures and objectives of the ladder stand in the config's section `forecast`. What is trained
    already is not trained again, and an interrupted ladder goes on by the same command.
    """
    from omniloom.infra.errors import InputError
    from omniloom.infra.figures import finite
    from omniloom.pipelines.forecasting import command

    if plan:
        command.plan(config, overrides or [])
        return
    if not budget:
        raise InputError("is missing: hours of the training's devices, such as 2h", field="--budget")
    hours = command.hours_of(budget)
    with signals.interruptible():
        report = command.forecast(config, overrides or [], hours)
    if as_json:
        print(json.dumps(finite(report.to_dict()), indent=2))
        return
    import yaml

    from omniloom.pipelines.tables import show

    for table in report.shown():
        show(table)
    print(yaml.safe_dump({"stages": {"train": report.config["stages"]["train"]}}, sort_keys=False), end="")
    for line in report.summary():
        print(line)
    print(f"config: {report.folder}/{command.BEST}")
    print(f"report: {report.folder}/{command.PAGE}")
