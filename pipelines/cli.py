"""The `omniloom` command. Every command answers fast: what is heavy is imported where it is needed.

Exit codes: 0 done, 1 a stage failed, 2 the request is wrong.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from omniloom.infra.errors import OmniLoomError
from omniloom.infra.secrets import redact, show_exception
from omniloom.pipelines import signals
from omniloom.pipelines.commands import (
    about,
    catalog,
    cluster,
    compare,
    curate,
    forecast,
    init,
    look,
    model,
    pipeline,
    replay,
    serve,
    wall,
    who_saw,
)

COMMANDS = (
    init.init,
    *(pipeline.plan, pipeline.run, pipeline.status, pipeline.why, pipeline.verify, curate.curate),
    *(cluster.submit, cluster.jobs, cluster.logs, cluster.stop),
    *(model.sample, serve.serve, model.sampler, model.export),
    *(catalog.show, catalog.lineage, catalog.diff, compare.compare, catalog.copy, catalog.gc),
    *(replay.replay, who_saw.who_saw, forecast.forecast),
    *(look.look, about.ui, wall.wall, about.doctor, about.presets, about.schema),
)
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its columns leave no room for words in a terminal of 80
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From raw folders of images, videos and text to a trained, evaluated model that reads and "
    "writes both text and pictures.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"omniloom {version('omniloom')}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """`main` reads --debug itself, before and after the command's name; here it stands for the help."""


for _command in COMMANDS:
    app.command()(_command)
app.command("list")(catalog.list_)
app.command("config")(pipeline.config_)


def main() -> None:
    """Entry point: errors in words, exit codes as documented."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of ASCII shows a path with an accent as it can
            stream.reconfigure(errors="backslashreplace")
    try:
        # Outside its standalone mode typer gives the code of an Exit back in place of raising it.
        code = app(args=(["--debug"] if debug else []) + arguments, prog_name="omniloom", standalone_mode=False) or 0
    except OmniLoomError as error:
        if debug:
            sys.excepthook = show_exception
            raise
        print(f"error: {redact(str(error))}", file=sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = signals.INTERRUPTED
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a wrong command line; typer has a click of its own
            error.show()
            sys.exit(2)
        if debug:
            sys.excepthook = show_exception
            raise
        print(f"error: {type(error).__name__}: {redact(str(error))} (--debug shows where)", file=sys.stderr)
        code = 1
    if code == signals.INTERRUPTED:
        print(signals.LINE, file=sys.stderr)
        signals.leave_soon()
    sys.exit(code)


if __name__ == "__main__":
    main()
