"""The command: exit codes and messages in words, nothing written for a wrong request, answers within seconds."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
from demo_stages import NAMES

from omniloom.infra import storage
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.pipelines import cli

# How often the CPU time that importing what every command needs takes on the same machine, whose speed moves by a third
# and more with what else it does, in the least of three tries. Seen: 4.0 to 5.5, and 4.8 to 5.0.
PLAN_TIMES, RUN_TIMES = 8, 8
LIBRARIES = "import pydantic, omegaconf, typer, rich.console, fsspec, yaml, pyarrow"


def timed(*command: str) -> tuple[subprocess.CompletedProcess, float]:
    """A Python process that ran to its end, and the CPU seconds that it took."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60)
    return done, spent() - before


def quickest(*arguments: str, under: float) -> tuple[subprocess.CompletedProcess, float]:
    """A process, and how many times as long it took as importing `LIBRARIES`; tried again, three times at most."""
    for _ in range(3):
        done, seconds = timed(*arguments)
        times = seconds / timed("-c", LIBRARIES)[1]
        if times < under or done.returncode:
            break
    return done, times


WRONG = {
    "unknown key": (["stages.train.batch_row=3"], "demo.yaml: stages.train.batch_row: unknown key; did you mean"),
    "wrong type": (["stages.train.steps=many"], "demo.yaml: stages.train.steps: input should be a valid integer"),
    "missing folder": (
        ["stages.ingest.sources.0.uri=/no/such/folder"],
        "demo.yaml: stages.ingest.sources.0.uri: no such file or folder: /no/such/folder",
    ),
    "empty corpus": (["stages.ingest.sources.0.uri={empty}"], "demo.yaml: stages.ingest.sources.0.uri: "),
    "no file of the kind": (
        ["stages.ingest.sources=[{{kind: video_folder, uri: {corpus}}}]"],
        "demo.yaml: stages.ingest.sources.0.uri: ",
    ),
    "unknown filesystem": (["storage=nope://x"], "demo.yaml: storage: nope://x cannot be read: "),
    "bad override": (["seed"], "demo.yaml: seed: expected an override of the form key=value"),
    "interpolation": (["seed=${{nope}}"], "demo.yaml: seed: Interpolation key 'nope' not found"),
    "unknown stage": (["--only", "trian"], "--only: no stage 'trian'; the stages are ingest, curate, train_scorer"),
    "two selections": (["--only", "train", "--until", "train"], "--only and --until exclude each other"),
    "unknown pin": (["pins.train=abc"], "demo.yaml: pins.train: no artifact 'abc' of train in "),
    "unknown option": (["--onyl", "train"], "No such option: --onyl"),
}


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request(omniloom, workspace, tmp_path, command, case):
    (tmp_path / "empty").mkdir()
    arguments, expected = WRONG[case]
    arguments = [a.format(empty=tmp_path / "empty", corpus=workspace.corpus) for a in arguments]
    code, out, err = omniloom(command, "demo", *workspace.overrides(), *arguments)
    assert code == 2 and out == ""
    assert expected in err and "Traceback" not in err
    if "Usage" not in err:
        assert err.startswith("error: ") and err.count("\n") == 1
    assert not workspace.storage.exists() and not any((tmp_path / "cwd").iterdir())


def test_unknown_preset_and_command(omniloom):
    code, _, err = omniloom("plan", "dmeo")
    assert code == 2 and err.startswith("error: dmeo: no such config file; the presets are ") and "demo" in err
    assert omniloom("plann", "demo")[0] == omniloom("plan")[0] == 2
    code, out, _ = omniloom("--help")
    assert code == 0 and "submit" in out


def test_nothing_that_could_be_started_is_blocked(omniloom, workspace):
    code, _, err = omniloom("run", "demo", *workspace.overrides(), "--only", "train")
    assert code == 2 and "train is blocked: nothing usable from pretokenize" in err
    assert not workspace.storage.exists()


def test_plan(omniloom, workspace):
    code, out, _ = omniloom("plan", "demo", *workspace.overrides(), "--json")
    assert code == 0
    stages = json.loads(out)["stages"]
    assert [stage["name"] for stage in stages] == list(NAMES)
    assert {stage["status"] for stage in stages} == {"run"}
    workspace.publish()
    code, out, _ = omniloom("plan", "demo", *workspace.overrides("stages.train.optimizer.lr=3e-4"))
    assert code == 0 and out.count("cached") == 4 and "-> 0.0003" in out


def test_status_and_verify(omniloom, workspace):
    workspace.publish()
    code, out, _ = omniloom("status", "demo", *workspace.overrides(), "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and rows["train"]["status"] == "cached" and rows["train"]["seconds"] == 11
    code, out, _ = omniloom("status", "demo", *workspace.overrides())
    assert code == 0 and f"model:  {workspace.artifact('train').file('model')}" in out and "report: " in out
    code, out, _ = omniloom("verify", "demo", *workspace.overrides())
    assert code == 0 and out.count("5 files intact") == 5
    path = workspace.artifact("train").file("a.bin")
    content = storage.read_bytes(path)
    storage.write_bytes(path, content[::-1])  # of the same size: only hashing tells
    assert omniloom("plan", "demo", *workspace.overrides())[0] == 0
    code, out, _ = omniloom("verify", "demo", *workspace.overrides())
    assert code == 1 and "train: damaged: a.bin" in out and "the next run makes train again" in out
    code, out, _ = omniloom("plan", "demo", *workspace.overrides(), "--json")
    row = next(row for row in json.loads(out)["stages"] if row["name"] == "train")
    assert (row["status"], row["reason"]) == ("run", "damaged: a.bin")
    storage.write_bytes(path, content)
    assert omniloom("verify", "demo", *workspace.overrides())[0] == 0
    assert "damaged" not in omniloom("plan", "demo", *workspace.overrides())[1]


def test_version_and_help(omniloom):
    assert omniloom("--version")[:2] == (0, f"omniloom {version('omniloom')}\n")
    assert omniloom("run", "-h")[0] == 0


def test_schema(omniloom):
    code, out, _ = omniloom("schema")
    assert code == 0 and set(json.loads(out)["properties"]) >= {"name", "storage", "stages", "pins"}


@pytest.mark.parametrize(
    "error, options, again",
    [
        (OmniLoomError("died"), [], True),
        (KeyboardInterrupt(), ["--until", "train"], True),
        (InputError("not so", field="stages.train"), [], False),  # it would only say the same again
        (OmniLoomError("died"), ["--force", "train"], False),  # it would begin again
        (OmniLoomError("died"), ["--from", "train"], False),
    ],
)
def test_a_run_that_ended_says_the_command_that_goes_on(omniloom, workspace, monkeypatch, error, options, again):
    def execute(*arguments):
        raise error

    monkeypatch.setattr("omniloom.pipelines.runner.run", execute)
    _, _, err = omniloom("run", "demo", *options, *workspace.overrides())
    line = f"again:  {shlex.join(['omniloom', 'run', 'demo', *workspace.overrides(), *options])}"
    assert (line in err.splitlines()) is again and ("again:" in err) is again


def test_an_interruption_and_an_unexpected_error(omniloom, workspace, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    def broken(*arguments):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("omniloom.pipelines.plan.make_plan", interrupted)
    code, _, err = omniloom("plan", "demo", *workspace.overrides())
    assert code == 130 and "interrupted; the next run goes on from here" in err
    monkeypatch.setattr("omniloom.pipelines.plan.make_plan", broken)
    code, _, err = omniloom("plan", "demo", *workspace.overrides())
    assert (code, err) == (1, "error: ZeroDivisionError: by zero (--debug shows where)\n")
    monkeypatch.setattr(sys, "argv", ["omniloom", "plan", "demo", "--debug", *workspace.overrides()])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_plan_answers_fast_and_imports_nothing_heavy(workspace):
    code = (
        "import atexit, sys; from omniloom.pipelines.cli import main;"
        "atexit.register(lambda: print('loaded:', {'torch', 'ray', 'mlflow', 'deepspeed', 'pandas', 'sklearn'}"
        " & set(sys.modules) or 'nothing', file=sys.stderr)); main()"
    )
    done, times = quickest("-c", code, "plan", "demo", *workspace.overrides(), under=PLAN_TIMES)
    print(f"plan took {times:.1f} times the imports")
    assert done.returncode == 0 and "never ran" in done.stdout
    assert done.stderr == "loaded: nothing\n"
    assert times < PLAN_TIMES and not workspace.storage.exists()


def test_a_run_with_nothing_to_do_ends_fast_without_ray(workspace):
    workspace.publish()
    before = workspace.files()
    command = ("-m", "omniloom.pipelines.cli", "run", "demo", *workspace.overrides())
    done, times = quickest(*command, under=RUN_TIMES)
    print(f"run with nothing to do took {times:.1f} times the imports")
    assert done.returncode == 0, done.stderr
    assert "everything is up to date" in done.stdout and "report.html" in done.stdout
    assert times < RUN_TIMES and workspace.files() == before


def test_a_wrong_run_shows_no_traceback(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-m", "omniloom.pipelines.cli", "run", "demo", "stages.train.steps=many"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "stages.train.steps" in done.stderr and "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


def test_a_terminal_of_ascii_is_told_too(tmp_path):
    place = tmp_path / "é"
    done = subprocess.run(
        [sys.executable, "-m", "omniloom.pipelines.cli", "plan", "demo", f"storage={place}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "demo in" in done.stdout and "\\xe9" in done.stdout, done.stderr


def test_the_shell_completes_commands(omniloom, monkeypatch):
    # What --show-completion prints where bash is the shell that is found around the process.
    monkeypatch.setenv("_OMNILOOM_COMPLETE", "source_bash")
    code, script, _ = omniloom()
    assert code == 0 and "complete -o default -F _omniloom_completion omniloom" in script
    # What the script asks for at the second word.
    monkeypatch.setenv("_OMNILOOM_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "omniloom s")
    monkeypatch.setenv("COMP_CWORD", "1")
    code, words, _ = omniloom()
    assert code == 0 and set(words.split()) == {
        *("status", "submit", "stop", "sample", "sampler", "schema", "show", "serve")
    }
