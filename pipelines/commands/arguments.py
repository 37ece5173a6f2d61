"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omniloom.pipelines.preset_files import preset_names

if TYPE_CHECKING:
    from omniloom.pipelines.plan import Plan
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
    """The plan of a config, by default for all its stages; InputError for what is wrong with one of the two."""
    from omniloom.pipelines.config import load
    from omniloom.pipelines.plan import make_plan
    from omniloom.pipelines.selection import Selection

    return make_plan(load(config, overrides or [], files=True), selection or Selection())
