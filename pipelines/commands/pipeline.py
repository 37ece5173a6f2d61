"""`plan`, `run`, `status`, `why`, `config`, `verify`: what a pipeline is to make, and what it has made."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.secrets import redact, redact_override
from omniloom.pipelines import signals
from omniloom.pipelines.commands.about import UI_PORT
from omniloom.pipelines.commands.arguments import AsJson, ConfigPath, Overrides, every_stage
from omniloom.pipelines.options import selection_options
from omniloom.pipelines.selection import Selection

if TYPE_CHECKING:
    from omniloom.pipelines.config import PipelineConfig
    from omniloom.pipelines.views.events import View


@selection_options
def plan(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False, *, selection: Selection) -> None:
    """Show what is cached, what would run, and why.

    Starts nothing and writes nothing. Of a config with a sweep: its trials, and what they share. Where cluster.address
    is given and answers, exit code 2 where its nodes have too few CPUs, GPUs or too little memory for what would run.
    """
    from omniloom.pipelines.config import load
    from omniloom.pipelines.plan import make_plan

    loaded = load(config, overrides or [], files=True)
    if loaded.sweep:
        from omniloom.pipelines.sweeps.command import print_plan

        print_plan(config, overrides or [], loaded, selection, as_json)
        return
    made = make_plan(loaded, selection)
    from omniloom.pipelines import room, takes

    attached, nodes = room.check_attached(made.config, [s.name for s in made.to_execute])
    notes, found = made.warnings + attached, takes.of(made, nodes)
    if as_json:
        print(json.dumps(takes.described(made, found), indent=2))
        return
    from omniloom.pipelines.tables import plan_table, show

    show(plan_table(made, found))
    for text in (*takes.lines(found), *takes.unknown(made, found)):
        print(text)
    for text in notes:
        print(f"note: {text}")


@selection_options
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show only the last words, and errors.")] = False,
    log_json: Annotated[
        bool,
        typer.Option(
            "--log-json",
            help="Show nothing but JSON objects, one a line on standard output: time, level, stage, event, message, "
            "fields.",
        ),
    ] = False,
    *,
    selection: Selection,
) -> None:
    """Run what the plan says.

    On this machine's own Ray, or on the cluster at cluster.address. Of a config with a sweep all trials.
    """
    from omniloom.pipelines.views.choice import chosen

    if not log_json:
        bring_up(config, overrides, selection, chosen(quiet))
        return
    view = chosen(quiet, log_json=True)
    try:
        bring_up(config, overrides, selection, view)
    except (KeyboardInterrupt, Exception) as error:
        sys.exit(_told_as_event(error, view))


def _told_as_event(error: BaseException, view: View) -> int:
    """The exit code, of which `main` has nothing to add any more."""
    from omniloom.pipelines.views.events import Event

    if isinstance(error, KeyboardInterrupt):
        code, text = signals.INTERRUPTED, signals.LINE
    elif isinstance(error, OmniLoomError):
        code, text = error.exit_code, str(error)
    else:
        code, text = 1, f"{type(error).__name__}: {error}"
    view.last(Event("error", text, level="error", fields={"type": type(error).__name__, "exit_code": code}))
    return code


def bring_up(config: str, overrides: list[str] | None, selection: Selection, view: View | None = None) -> None:
    """Plan, run, and say how it ended. `view`: by default as this terminal has it."""
    with signals.interruptible():
        from omniloom.pipelines.config import load
        from omniloom.pipelines.plan import make_plan

        loaded = load(config, overrides or [], files=True)
        if loaded.sweep:
            _run_sweep(config, overrides or [], loaded, selection, view)
            return
        made = make_plan(loaded, selection)
        from omniloom.infra.cluster import settle
        from omniloom.pipelines.config import naming
        from omniloom.pipelines.display import Display
        from omniloom.pipelines.remaining import Remaining
        from omniloom.pipelines.runner import run as execute
        from omniloom.pipelines.tables import closing_lines

        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # this is a job; every path is absolute by now
            settle()
        executed, remaining = [stage.name for stage in made.to_execute], Remaining.of(made)
        display = Display(view, remaining)
        try:
            with naming(made.config):
                execute(made, display)
        except (KeyboardInterrupt, OmniLoomError) as error:
            if line := _goes_on(error, config, overrides or [], selection):
                display.last("again", line)
            raise
        finally:
            if display.log:
                display.last("log", f"log:    {display.log.uri}", path=display.log.uri, workers=display.log.workers)
        for line in closing_lines(made, executed):
            display.last("result", line)
        if display.page:
            served = display.page.startswith("http")
            display.last(
                "result",
                "MLflow: "
                + (display.page if served else f"omniloom ui {config}, then http://127.0.0.1:{UI_PORT}{display.page}"),
            )


def _run_sweep(
    config: str, overrides: list[str], loaded: PipelineConfig, selection: Selection, view: View | None
) -> None:
    from omniloom.infra.cluster import settle
    from omniloom.pipelines.display import Display
    from omniloom.pipelines.sweeps import command

    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # this is a job; every path is absolute by now but the file's own
        config = os.path.abspath(config)
        settle()
    try:
        command.run(config, overrides, loaded, selection, view)
    except (KeyboardInterrupt, OmniLoomError) as error:
        if line := _goes_on(error, config, overrides, selection):
            Display(view).last("again", line)
        raise


def _goes_on(
    error: BaseException, config: str | os.PathLike, overrides: Iterable[str], selection: Selection
) -> str | None:
    """The line with the command that goes on from where a run ended; None where something has to be changed first, or
    the command would make a stage again from its beginning."""
    again = selection.only or selection.from_ or selection.force
    if isinstance(error, InputError) or again or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        return None
    words = ["omniloom", "run", str(config), *map(redact_override, overrides), *selection.arguments()]
    return f"again:  {shlex.join(words)}"


def status(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show stages, artifacts, sizes, metrics and MLflow runs.

    Of a config with a sweep: of all trials, each artifact once, with what came out so far.
    """
    from omniloom.pipelines.config import load
    from omniloom.pipelines.plan import make_plan
    from omniloom.pipelines.tables import closing_lines, show, status_rows, status_table

    loaded = load(config, overrides or [], files=True)
    if loaded.sweep:
        from omniloom.pipelines.sweeps.command import print_status

        print_status(config, overrides or [], loaded, as_json)
        return
    made = make_plan(loaded)
    rows = status_rows(made)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        show(status_table(made.config, rows))
        for line in closing_lines(made, [])[1:]:
            print(line)


def why(
    config: ConfigPath,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A stage of the pipeline.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say why a stage is cached or would run.

    Everything that differs from what the pipeline used last, and from the nearest of the stage's other artifacts. Of a
    config with a sweep: of the stage in each trial, and what trials share once; N/STAGE is that of trial N alone.
    """
    from omniloom.pipelines.why import lines
    from omniloom.pipelines.why import why as reasons

    stages = every_stage(config, overrides, stage)
    found = {label: reasons(plan, planned.name) for label, plan, planned in stages}
    if as_json:
        alone = len(stages) == 1 and stages[0][0] == stage
        print(json.dumps(found[stage] if alone else found, indent=2))
        return
    for label, told in found.items():
        for line in lines(told | {"name": label}):
            print(line)


def config_(
    config: ConfigPath,
    overrides: Overrides = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="With every key, defaults and absolute paths too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print a pipeline's config with overrides applied and references filled in."""
    import yaml

    from omniloom.pipelines.config import load, raw

    loaded = load(config, overrides or [])  # what is wrong is told in either case
    values = redact(loaded.model_dump(mode="json", by_alias=True) if resolved else raw(config, overrides or []))
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
    else:
        print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110), end="")


def verify(config: ConfigPath, overrides: Overrides = None) -> None:
    """Hash every file of the pipeline's artifacts again.

    What is damaged is noted for the next run; exit code 1 where something is.
    """
    damaged = []
    for label, plan, planned in every_stage(config, overrides):
        if planned.artifact:
            bad = plan.store.examine(planned.artifact)
            damaged += [label] if bad else []
            print(
                f"{label}: "
                + (
                    f"damaged: {', '.join(bad)} in {redact(planned.uri)}"
                    if bad
                    else f"{len(planned.artifact.manifest['files'])} files intact"
                )
            )
    if damaged:
        print(
            f"the next run makes {' and '.join(damaged)} again, and after it what reads it if its content comes out "
            "otherwise; or put the files back from a copy and verify again"
        )
        raise typer.Exit(1)
