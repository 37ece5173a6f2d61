"""`ui`, `doctor`, `presets`, `schema`: what there is to see of this installation, before and after a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from omniloom.infra.errors import InputError
from omniloom.pipelines.commands.arguments import AsJson, ConfigPath, Overrides

UI_PORT = 5000


def ui(
    config: ConfigPath,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(metavar="N", help="Port on 127.0.0.1.")] = UI_PORT,
) -> None:
    """Serve the pipeline's MLflow UI on 127.0.0.1 until Ctrl-C."""
    from omniloom.infra.tracking import relocate, resolve_tracking
    from omniloom.infra.tracking.pages import serve
    from omniloom.pipelines.config import load, naming

    loaded = load(config, overrides or [])
    settings = resolve_tracking(loaded.tracking, loaded.storage)
    relocate(settings)  # of a storage that was moved the UI finds the files too
    with naming(loaded):
        serve(settings, port)


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG", help="Also size this pipeline: parameters, memory per worker, tokens per step."
        ),
    ] = None,
    overrides: Overrides = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Time a few steps of its trainings and a sample of its sources here, for `plan` to predict by.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is missing here, and what a pipeline needs.

    Here is this machine, or the cluster at cluster.address. Exit code 1 where something needed is missing.
    """
    from omniloom.pipelines import doctor as checks

    if measure and config is None:
        raise InputError("--measure times the steps of a pipeline; name its config: omniloom doctor CONFIG --measure")
    report = checks.examine(config, overrides or [], measure)
    print(json.dumps(report, indent=2) if as_json else checks.render(report))
    if not all(check["ok"] or not check["needed"] for check in report["checks"]):
        raise typer.Exit(1)


def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Print this preset's file, to copy: omniloom presets demo > mine.yaml"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the presets, what each is for and where its file is; or print one."""
    from omniloom.pipelines.preset_files import PRESETS, preset, purposes
    from omniloom.pipelines.tables import presets_table, show

    if name is not None:
        print(preset(name).read_text(encoding="utf-8"), end="")
    elif as_json:
        files = {known: str(PRESETS / f"{known}.yaml") for known in purposes()}
        rows = [{"name": known, "what": what, "file": files[known]} for known, what in purposes().items()]
        print(json.dumps(rows, indent=2))
    else:
        show(presets_table(PRESETS))


def schema(
    markdown: bool = typer.Option(False, "--markdown", help="As a page to read: docs/config.md."),
) -> None:
    """Print the JSON Schema of the config, with every key described."""
    from omniloom.pipelines import reference
    from omniloom.pipelines.config import PipelineConfig

    document = PipelineConfig.model_json_schema()
    print(reference.markdown(document) if markdown else json.dumps(document, indent=2))
