"""The terminal while a short training runs, as tmux shows it: at 80 and at 200 columns, and what machines read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_pipeline

from omniloom.infra.tracking import resolve_tracking
from omniloom.pipelines.config import load

pytestmark = pytest.mark.slow
OMNILOOM = Path(sys.executable).with_name("omniloom")
ROW = re.compile(r"^(\S.{13,19}) [━╸╺]+ +(\d+)% (?:\d+:\d\d:\d\d )?(\S.*?) *$")
FITS = r"\d+/60 steps, [\d.]+(?: steps)?/s, loss [\d.]+(?:, \w+_loss [\d.e-]+)*, (?:\d+ min )?\d+ s left"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return small_pipeline.write(tmp_path_factory.mktemp("terminal"))


def environment(config: Path) -> dict[str, str]:
    """Its cache is its own, as what was measured on this machine before is predicted by."""
    own = {"OMNILOOM_CACHE": str(config.parent / "cache"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, "FORCE_COLOR": "1"}  # which makes no terminal of a pipe


def watched(config: Path, width: int, height: int, *arguments: str) -> list[list[str]]:
    """What a terminal of this size showed of a run, about twice a second: pictures of its lines."""
    tmux = ["tmux", "-L", f"omniloom-{os.getpid()}", "-f", "/dev/null"]
    ended = config.parent / f"ended-{width}"
    command = f"{OMNILOOM} run {config.name} {' '.join(arguments)}; echo $? > {ended}; sleep 3"
    size = ["-x", str(width), "-y", str(height)]
    subprocess.run(
        [*tmux, "new-session", "-d", "-s", "run", *size, command],
        check=True,
        cwd=config.parent,
        env=environment(config),
    )
    pictures: list[list[str]] = []
    deadline = time.monotonic() + 240
    try:
        while time.monotonic() < deadline and (not pictures or not ended.exists()):
            time.sleep(0.4)
            shown = subprocess.run([*tmux, "capture-pane", "-p", "-t", "run"], capture_output=True, text=True)
            if shown.returncode == 0 and (not pictures or shown.stdout.splitlines() != pictures[-1]):
                pictures.append(shown.stdout.splitlines())
        time.sleep(0.5)
        shown = subprocess.run([*tmux, "capture-pane", "-p", "-t", "run"], capture_output=True, text=True, check=True)
        pictures.append(shown.stdout.splitlines())
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True)
    assert ended.read_text().strip() == "0", "\n".join(pictures[-1])
    return pictures


def rows(picture: list[str], width: int) -> dict[str, str]:
    """The block of bars of a picture: what stands beside each stage. Each takes one line, and none is drawn twice."""
    marked = [number for number, line in enumerate(picture) if "━" in line or "╸" in line or "╺" in line]
    if not marked:
        return {}
    block = picture[marked[0] : marked[-1] + 1]
    found = [ROW.match(line) for line in block]
    assert all(found) and all(len(line) <= width for line in block), "\n".join(block)
    names = [match[1].rstrip() for match in found if match]
    assert len(names) == len(set(names)) and names[-1] == "in all", names
    return {match[1].rstrip(): match[3] for match in found if match}


def test_at_80_columns(config):
    pictures = watched(config, 80, 24)
    shown = [rows(picture, 80) for picture in pictures]
    stages = ["ingest", "tokenizer_image", "pretokenize", "train"]
    last = next(block for block in reversed(shown) if block)
    assert list(last) == [*stages, "in all"] and last["in all"] == "4 of 4 stages"
    assert all(last[stage].startswith("done in ") for stage in stages)
    said = [block["train"] for block in shown if "train" in block]
    assert "starting 2 workers" in said
    assert any(re.fullmatch(FITS, text) for text in said), said
    first = "\n".join(pictures[len(pictures) // 2])
    assert "predicted: nothing yet" in first and "/store/runs/" in "".join(pictures[len(pictures) // 2])
    end = "".join(pictures[-1])
    assert "squares: ran ingest, tokenizer_image, pretokenize, train" in " ".join(end.split()) and "log:    /" in end
    assert "sample: omniloom sample /" in end and "MLflow: omniloom ui" in end


def test_at_200_columns_with_what_the_first_run_taught(config):
    pictures = watched(config, 200, 50, "--force", "train", "--force", "pretokenize")
    shown = [rows(picture, 200) for picture in pictures]
    blocks = [block for block in shown if block]
    middle = "\n".join(pictures[len(pictures) // 2])
    assert re.search(r"^predicted: \d+ s \(pretokenize \d+ s, train \d+ s\)", middle, re.MULTILINE)
    assert re.fullmatch(r"0 of 2 stages, about \d+ s left", blocks[0]["in all"]), blocks[0]
    said = [block["train"] for block in blocks if "train" in block]
    assert any(re.fullmatch(FITS, text) and "_loss" in text for text in said), said
    assert blocks[-1]["train"].startswith("done in ") and not blocks[-1]["train"].endswith("\N{HORIZONTAL ELLIPSIS}")


def ran(config: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [str(OMNILOOM), "run", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment(config))


def test_json_lines_alone_and_a_log_of_every_process(config):
    import mlflow

    done = ran(config, "--force", "train", "--log-json")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(set(event) == {"time", "level", "stage", "event", "message", "fields"} for event in events)
    of_train = [event["event"] for event in events if event["stage"] == "train"]
    assert of_train[0] == "start" and of_train[-1] == "done" and "progress" in of_train
    assert any(event["message"] == "starting 2 workers" for event in events)
    (log,) = [Path(event["fields"]["path"]) for event in events if event["event"] == "log" and event["fields"]["path"]]
    assert "train: starting 2 workers" in log.read_text()
    for rank in (0, 1):
        text = (log.with_suffix("") / f"train/rank-{rank}.log").read_text()
        assert f"rank {rank} of 2, gloo" in text and re.search(r"step 60/60: .*\bloss [\d.]+", text)
    assert "starting 2 workers" in (log.with_suffix("") / "train/body.log").read_text()
    loaded = load(str(config))
    settings = resolve_tracking(loaded.tracking, loaded.storage)
    client = mlflow.MlflowClient(settings.uri)
    experiment = client.get_experiment_by_name(settings.experiment)
    runs = client.search_runs([experiment.experiment_id], max_results=10)
    train = next(run for run in runs if run.info.run_name == "train")
    kept = {file.path for file in client.list_artifacts(train.info.run_id, "logs")}
    assert kept == {"logs/body.log", "logs/rank-0.log", "logs/rank-1.log"}
    assert train.data.tags["omniloom.logs"] == f"{log.with_suffix('')}/train"
    parent = client.get_run(train.data.tags["mlflow.parentRunId"])
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "logs")] == ["logs/run.log"]


def test_quiet_says_how_it_ended_and_errors(config):
    done = ran(config, "--quiet", "--force", "pretokenize", "--until", "pretokenize")
    assert done.returncode == 0 and [line.split(":")[0] for line in done.stderr.splitlines()] == ["log"]
    assert done.stdout.startswith("squares: ran pretokenize\n")
    for more in ((), ("--log-json",)):
        wrong = ran(config, "--quiet", *more, "stages.train.steps=never")
        assert wrong.returncode == 2 and "stages.train.steps" in wrong.stdout + wrong.stderr
    assert json.loads(wrong.stdout)["level"] == "error" and wrong.stderr == ""


def test_a_pipe_has_plain_lines(config):
    done = ran(config, "--force", "pretokenize", "--until", "pretokenize")
    assert "\x1b" not in done.stderr + done.stdout and "━" not in done.stderr
    assert re.search(r"^\d\d:\d\d:\d\d pretokenize: starting \(forced\)$", done.stderr, re.MULTILINE), done.stderr
    assert "predicted: " in done.stderr and "\nlog:    /" in done.stderr
