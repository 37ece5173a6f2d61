"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omniloom.infra.errors import InputError
from omniloom.pipelines.preset_files import preset_names

if TYPE_CHECKING:
    from omniloom.pipelines.plan import Plan
    from omniloom.pipelines.planned import PlannedStage
    from omniloom.pipelines.selection import Selection

DASHBOARD = "http://127.0.0.1:8265"

ConfigPath = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help=f"A pipeline's YAML file, or a preset: {', '.join(preset_names())}.",
        autocompletion=lambda incomplete: [name for name in preset_names() if name.startswith(incomplete)],
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Overrides as paths from the config's root: stages.train.optimizer.lr=3e-4"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Address = Annotated[
    str,
    typer.Option(metavar="URL", help="The cluster's job server, its dashboard.", envvar="RAY_API_SERVER_ADDRESS"),
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="The id that `submit` printed; `jobs` lists them.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A pipeline's config or preset that was run, a train artifact or its model folder, or models:/NAME@ALIAS "
        "of the registry that MLFLOW_TRACKING_URI names.",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Requests as JSON lines: prompt, image (a file or several), seed, and choices such as num_steps.",
    ),
]


def planned(config: str, overrides: list[str] | None, selection: Selection | None = None) -> Plan:
    """The plan of a config, by default for all its stages; InputError for what is wrong with one of the two, and where
    it has a sweep, each of whose trials has a plan of its own."""
    from omniloom.pipelines.config import load
    from omniloom.pipelines.plan import make_plan
    from omniloom.pipelines.selection import Selection

    loaded = load(config, overrides or [], files=True)
    if loaded.sweep:
        raise InputError(
            "this command is of one pipeline, and a sweep has one for each trial; sweep=null with a trial's values as "
            "overrides names it, and `omniloom plan` lists them",
            field="sweep",
        )
    return make_plan(loaded, selection or Selection())


def every_stage(
    config: str, overrides: list[str] | None, stage: str | None = None
) -> list[tuple[str, Plan, PlannedStage]]:
    """The stages of a config, or the one of this name, each by the name that it is shown by: of a sweep those of all
    trials, each artifact once. InputError where there is no such stage."""
    from omniloom.pipelines.config import load
    from omniloom.pipelines.plan import make_plan

    loaded = load(config, overrides or [], files=True)
    if not loaded.sweep:
        made = make_plan(loaded)
        return [(one.name, made, one) for one in (made.stages if stage is None else [made.stage(stage)])]
    from omniloom.pipelines.sweeps.trial_stages import trial_stages, trials_of

    trials = trials_of(config, overrides or [], loaded)
    found = [(one.label, one.plan, one.planned) for one in trial_stages(trials)]
    named = [one for one in found if stage in (None, one[0], one[2].name)]
    if not named:
        raise InputError(f"expected one of {', '.join(label for label, *_ in found)}", field="STAGE")
    return named
