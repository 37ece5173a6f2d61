"""What a run shows: at 80 columns all that matters is whole; a log file has every line."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from omniloom.infra import storage
from omniloom.pipelines.display import Display
from omniloom.pipelines.runlog import RunLog

STATE = {"done": 132, "total": 150, "unit": "steps", "facts": {"loss": 0.4321}}


def screen(width: int, stages: list[str], act) -> list[str]:
    """The last picture of a terminal of that width."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=30, color_system=None, legacy_windows=False)
    with Display(console) as display:
        for stage in stages:
            display.start(stage, "never ran")
        act(display)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())  # moves of the cursor between the frames
    return [line.rpartition("\r")[2] for line in text.rstrip("\n").split("\n")[-len(stages) :]]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_bar_is_whole_at_any_width(width):
    def act(display: Display) -> None:
        now = time.time()
        display.update({"tokenizer_image": {**STATE, "done": 0, "time": now - 41}})
        display.update({"tokenizer_image": {**STATE, "time": now}, "objective_study": {"says": "starting 2 workers"}})

    lines = screen(width, ["tokenizer_image", "objective_study"], act)
    assert all(len(line) <= width for line in lines)
    one, two = (line.split() for line in lines)
    assert one[0] == "tokenizer_image" and "88%" in one and "0:00:00" in one and "132/150" in one
    assert two[0] == "objective_study" and " ".join(two).endswith("starting 2 workers")
    shown = " ".join(one)
    assert "3.22 steps/s, 6 s left" in shown and ("loss 0.4321" in shown) == (width > 90)


def test_what_a_stage_says_gives_way_to_its_count_and_comes_back():
    def act(display: Display) -> None:
        display.update({"train": {"says": "starting 2 workers"}})
        display.update({"train": {**STATE, "time": time.time()}})
        display.update({"train": {"says": "saving"}})

    assert screen(80, ["train"], act)[0].rstrip().endswith("saving")


def test_the_first_step_has_a_line_of_its_own_in_the_log():
    """However soon it follows what was said: when a training began is read there."""
    out = io.StringIO()
    display = Display(Console(file=out, width=80))
    display.start("train", "never ran")
    display.update({"train": {"says": "starting 2 workers"}})
    for done in (1, 2, 3):
        display.update({"train": {**STATE, "done": done, "time": time.time()}})
    assert [line.split()[2] for line in out.getvalue().splitlines()[2:]] == ["1/150"]


def test_the_log_has_what_was_shown_and_why_it_failed(tmp_path):
    out = io.StringIO()
    with pytest.raises(ValueError), RunLog(str(tmp_path), "20260101-000000-abcdef") as log:
        (tmp_path / "runs").mkdir()
        display = Display(Console(file=out, width=80))
        display.log = log
        display.note("starting Ray")
        display.start("train", "never ran")
        for says in ("starting 2 workers", "starting 2 workers", "saving"):
            display.update({"train": {"says": says}})
        display.fail("train")
        raise ValueError("no room") from OSError("disk full, token=abc s3://user:secret@host/x")
    lines = [line[20:] for line in (tmp_path / "runs/20260101-000000-abcdef.log").read_text().splitlines()]
    assert lines == [
        "starting Ray",
        "train: starting (never ran)",
        "train: starting 2 workers",
        "train: saving",
        "train: failed",
        "ValueError: no room",
        "disk full, token=abc s3://***@host/x",
    ]
    assert [line.split(" ", 1)[1] for line in out.getvalue().splitlines()[1:]] == lines[1:5]


def test_a_log_of_a_remote_storage_is_stored_at_the_end(s3):
    with RunLog(s3, "run") as log:
        log.write("a line")
    assert storage.read_bytes(log.uri).decode().endswith("a line\n")
