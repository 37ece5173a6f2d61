"""The `omniloom` command. Every command answers fast: what is heavy is imported where it is needed.

Exit codes: 0 done, 1 a stage failed, 2 the request is wrong.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.secrets import redact, show_exception
from omniloom.pipelines import signals
from omniloom.pipelines.options import sampling_options

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From raw folders of images, videos and text to a trained, evaluated model that reads and "
    "writes both text and pictures.",
)

UI_PORT = 5000
_TEMPERATURE = (
    "of text 0 where one description is asked for, else 0.8 with --top-p 0.95, and what then goes round in circles is "
    "cut; of codes 1"
)
ConfigPath = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A pipeline's YAML file, or a preset: demo, sample, objectives, pictures, tokenizer, cluster.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides as paths from the config's root: stages.train.optimizer.lr=3e-4"
    ),
]
Only = Annotated[str | None, typer.Option(metavar="STAGE", help="Run this stage alone, again if it is cached.")]
From = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Run this stage and all after it again.")]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help="Bring this stage and what it needs up to date.")]
Force = Annotated[
    list[str] | None,
    typer.Option(metavar="STAGE", help="Run a stage again from its beginning; may be given more than once."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Address = Annotated[
    str, typer.Option(help="The cluster's job server, such as http://127.0.0.1:8265.", envvar="RAY_API_SERVER_ADDRESS")
]


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


def _plan(
    config: str,
    overrides: list[str] | None,
    only: str | None,
    from_: str | None,
    until: str | None,
    force: list[str] | None,
):
    from omniloom.pipelines.config import load
    from omniloom.pipelines.plan import make_plan
    from omniloom.pipelines.selection import Selection

    return make_plan(load(config, overrides or []), Selection(only, from_, until, tuple(force or ())))


@app.command()
def plan(
    config: ConfigPath,
    overrides: Overrides = None,
    only: Only = None,
    from_: From = None,
    until: Until = None,
    force: Force = None,
    as_json: AsJson = False,
) -> None:
    """Show what is cached, what would run, and why. Starts nothing and writes nothing."""
    made = _plan(config, overrides, only, from_, until, force)
    if as_json:
        print(json.dumps(made.to_dict(), indent=2))
        return
    from omniloom.pipelines.tables import plan_table, show

    show(plan_table(made))
    for text in made.warnings:
        print(f"note: {text}")


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    only: Only = None,
    from_: From = None,
    until: Until = None,
    force: Force = None,
) -> None:
    """Run what the plan says, on this machine's own Ray or on cluster.address."""
    with signals.interruptible():
        made = _plan(config, overrides, only, from_, until, force)
        from omniloom.infra.cluster import settle
        from omniloom.pipelines.config import naming
        from omniloom.pipelines.display import Display
        from omniloom.pipelines.runner import run as execute
        from omniloom.pipelines.tables import closing_lines

        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # this is a job; every path is absolute by now
            settle()
        executed, display = [planned.name for planned in made.to_execute], Display()
        try:
            with naming(made.config):
                execute(made, display)
        finally:
            if display.log:
                print(f"log:    {display.log.uri}", file=sys.stderr)
        for line in closing_lines(made, executed):
            print(redact(line))
        if display.page:
            served = display.page.startswith("http")
            print(
                "MLflow: "
                + (display.page if served else f"omniloom ui {config}, then http://127.0.0.1:{UI_PORT}{display.page}")
            )


@app.command()
def status(config: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Show stages, artifacts, sizes, metrics and MLflow runs."""
    from omniloom.pipelines.tables import closing_lines, show, status_rows, status_table

    made = _plan(config, overrides, None, None, None, None)
    rows = status_rows(made)
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        show(status_table(made, rows))
        for line in closing_lines(made, [])[1:]:
            print(line)


@app.command()
def submit(
    config: ConfigPath,
    overrides: Overrides = None,
    address: Address = "http://127.0.0.1:8265",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Print the job's id and return.")] = False,
    only: Only = None,
    from_: From = None,
    until: Until = None,
    force: Force = None,
) -> None:
    """Run the pipeline as a job on a Ray cluster; waits and shows its log unless --no-wait."""
    from omniloom.pipelines import jobs as cluster_jobs
    from omniloom.pipelines.checks import check_stages
    from omniloom.pipelines.config import load
    from omniloom.pipelines.selection import Selection

    # A wrong config or selection fails here, not minutes later on the cluster.
    loaded = load(config, overrides or [])
    Selection(only, from_, until, tuple(force or ())).stages(loaded.graph)
    # Files of another machine are for the job to look at, before it starts anything.
    check_stages(loaded, files=cluster_jobs.on_this_machine(address))
    options = [
        part
        for option, value in (("--only", only), ("--from", from_), ("--until", until))
        if value
        for part in (option, value)
    ] + [part for stage in force or () for part in ("--force", stage)]
    job = cluster_jobs.submit(config, overrides or [], address, arguments=options)
    print(f"job {job}")
    print(f"follow it with: omniloom logs {job} -f --address {redact(address)}", flush=True)
    if no_wait:
        return
    try:
        for line in cluster_jobs.logs(address, job, follow=True):
            print(redact(line), flush=True)
        outcome = cluster_jobs.wait(address, job)
    except KeyboardInterrupt:
        print(f"job {job} goes on; end it with: omniloom stop {job} --address {redact(address)}", file=sys.stderr)
        sys.exit(signals.INTERRUPTED)
    why = f": {redact(outcome.message)}" if outcome.status == "FAILED" else ""
    print(f"job {job}: {outcome.status.lower()}{why}")
    if outcome.status != "SUCCEEDED":
        raise typer.Exit(1)


@app.command()
def jobs(address: Address = "http://127.0.0.1:8265", as_json: AsJson = False) -> None:
    """List the cluster's jobs."""
    from omniloom.pipelines.jobs import jobs as list_jobs

    rows = redact([dataclasses.asdict(job) for job in list_jobs(address)])
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from omniloom.pipelines.tables import jobs_table, show

    show(jobs_table(rows))


@app.command()
def logs(
    job: Annotated[str, typer.Argument(metavar="JOB")],
    address: Address = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> None:
    """Print a job's log."""
    from omniloom.pipelines.jobs import logs as read_logs

    try:
        for line in read_logs(address, job, follow=follow):
            print(redact(line), flush=True)
    except KeyboardInterrupt:  # the job goes on
        sys.exit(signals.INTERRUPTED)


@app.command()
def stop(job: Annotated[str, typer.Argument(metavar="JOB")], address: Address = "http://127.0.0.1:8265") -> None:
    """Stop a job; what its stages have finished so far is kept, and the next run goes on from there."""
    from omniloom.pipelines.jobs import stop as stop_job

    print(f"job {job}: {stop_job(address, job).status.lower()}")


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A pipeline's config or preset that was run, a train "
        "artifact or its model folder, or models:/NAME@ALIAS of the registry that "
        "MLFLOW_TRACKING_URI names.",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Requests as JSON lines: prompt, image (a file or several), seed, and choices such as num_steps.",
    ),
]


@app.command()
@sampling_options(usual={"temperature": _TEMPERATURE})
def sample(
    model: Model,
    prompt: Annotated[str, typer.Option(help="A caption to draw, or a text to go on from.")] = "",
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture that stands before the prompt, to describe or to draw after; may be given more than once."
        ),
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Draw an image, as without --image.")] = False,
    video: Annotated[bool, typer.Option("--video", help="Draw a video.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Write, as with --image.")] = False,
    interleave: Annotated[
        bool, typer.Option("--interleave", help="Write, and draw where the model opens a picture.")
    ] = False,
    prompts: Prompts = None,
    count: Annotated[int, typer.Option(min=1, help="How many samples of each request.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Samples count up from it.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for what is drawn.")] = Path("samples"),
    jsonl: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="List what was made as JSON lines; OUT/samples.jsonl for several requests and with --interleave.",
        ),
    ] = None,
    *,
    sampling: dict,
) -> None:
    """Sample from a trained model: from text and pictures text, images, videos, or text and pictures in turn."""
    from omniloom.pipelines.trained import find_model
    from omniloom.stages.inference.requests import Options, Request, chosen_task, read_requests
    from omniloom.stages.inference.sampling import sample as make

    if prompts and (prompt or image):
        raise InputError("excludes --prompt and --image", field="--prompts")
    options = Options(
        task=chosen_task(draw=draw, video=video, text=text, interleave=interleave),
        count=count,
        seed=seed,
        sampling=sampling,
    )
    requests = read_requests(prompts) if prompts else [Request(prompt, tuple(image or ()))]
    for line in make(find_model(model), requests, options, out, jsonl):
        print(line, flush=True)


@app.command()
@sampling_options(("num_steps", "guidance_scale", "objective", "size"), required=("num_steps",))
def sampler(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the predictor is written.")],
    prompts: Prompts = None,
    iterations: Annotated[int, typer.Option(min=1)] = 150,
    batch: Annotated[int, typer.Option(min=1, help="Pictures an iteration.")] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    *,
    sampling: dict,
) -> None:
    """Train AMED's predictor for a model, which draws in few steps: `sample --sampler amed --predictor FILE`. It serves
    the --steps and the --guidance that it is trained with."""
    from omniloom.pipelines.trained import find_model
    from omniloom.stages.inference.amed import Training, train
    from omniloom.stages.inference.options import visual_sampling

    training = Training(visual_sampling(sampling), iterations=iterations, batch_size=batch, seed=seed)
    for line in train(find_model(model), training, out, prompts):
        print(line, flush=True)


@app.command()
def ui(
    config: ConfigPath,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = UI_PORT,
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


@app.command()
def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]", help="Also size this pipeline: parameters, memory per GPU, tokens per step."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what is missing on this machine, and what a pipeline needs. Exit code 1 where something needed is missing."""
    from omniloom.pipelines import doctor as checks

    report = checks.examine(config, overrides or [])
    print(json.dumps(report, indent=2) if as_json else checks.render(report))
    if not all(check["ok"] or not check["needed"] for check in report["checks"]):
        raise typer.Exit(1)


@app.command()
def presets() -> None:
    """List the presets with what each is for, and the folder of their files, to be copied."""
    from omniloom.pipelines.config import PRESETS
    from omniloom.pipelines.tables import presets_table, show

    show(presets_table(PRESETS))


@app.command()
def schema(
    markdown: bool = typer.Option(False, "--markdown", help="As a page to read: docs/config.md."),
) -> None:
    """Print the JSON Schema of the config, with every key described."""
    from omniloom.pipelines import reference
    from omniloom.pipelines.config import PipelineConfig

    document = PipelineConfig.model_json_schema()
    print(reference.markdown(document) if markdown else json.dumps(document, indent=2))


@app.command()
def verify(config: ConfigPath, overrides: Overrides = None) -> None:
    """Hash every file of the pipeline's artifacts again, and note what is damaged for the next run. Exit code 1 where
    something is."""
    made = _plan(config, overrides, None, None, None, None)
    damaged = []
    for planned in made.stages:
        if planned.artifact:
            bad = made.store.examine(planned.artifact)
            damaged += [planned.name] if bad else []
            print(
                f"{planned.name}: "
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
    sys.exit(code)


if __name__ == "__main__":
    main()
