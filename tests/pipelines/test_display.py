"""What a run shows: bars that fit, plain lines, JSON, or nothing but last words; a log file has every line."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import time
import warnings

import pytest
from rich.console import Console

from omniloom.infra import storage
from omniloom.pipelines.display import Display
from omniloom.pipelines.remaining import Remaining
from omniloom.pipelines.runlog import RunLog
from omniloom.pipelines.views.bars import Bars
from omniloom.pipelines.views.events import Count
from omniloom.pipelines.views.lines import Errors, JsonLines, Lines

STATE = {"done": 132, "total": 150, "unit": "steps", "facts": {"loss": 0.4321}}


def screen(width: int, stages: list[str], act, remaining: Remaining | None = None) -> list[str]:
    """The last picture of a terminal of that width."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=30, color_system=None, legacy_windows=False)
    with Display(Bars(console), remaining) as display:
        for stage in stages:
            display.start(stage, "never ran")
        act(display)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())  # moves of the cursor between the frames
    rows = len(stages) + bool(remaining)
    return [line.rpartition("\r")[2] for line in text.rstrip("\n").split("\n")[-rows:]]


def lines(display: Display, act) -> list[str]:
    """What a display of plain lines shows."""
    out = display.view.console.file
    act(display)
    return out.getvalue().splitlines()


def plain() -> Display:
    return Display(Lines(Console(file=io.StringIO(), width=80)))


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_bar_is_whole_at_any_width(width):
    def act(display: Display) -> None:
        now = time.time()
        display.update({"tokenizer_image": {**STATE, "done": 0, "time": now - 41}})
        display.update({"tokenizer_image": {**STATE, "time": now}, "objective_study": {"says": "starting 2 workers"}})

    shown = screen(width, ["tokenizer_image", "objective_study"], act)
    assert all(len(line) <= width for line in shown)
    one, two = (line.split() for line in shown)
    assert one[0] == "tokenizer_image" and "88%" in one and "132/150" in one and ("0:00:00" in one) == (width > 110)
    assert two[0] == "objective_study" and " ".join(two).endswith("starting 2 workers")
    rate = "3.22 steps/s" if width > 80 else "3.22/s"
    assert " ".join(one).endswith(f"132/150 steps, {rate}, loss 0.4321, 6 s left")


@pytest.mark.parametrize("width", [40, 80, 110, 200])
def test_no_row_is_longer_than_the_terminal(width):
    facts = {"loss": 123.4, "image_loss": 1e-9, "video_loss": 2e17, "text_loss": 0.5}
    long = {"done": 1_234_567, "total": 10_000_000, "unit": "pictures", "facts": facts}

    def act(display: Display) -> None:
        display.update({"a_name_that_is_longer_than_others": {**long, "done": 0, "time": 0.0}})
        display.update(
            {
                "a_name_that_is_longer_than_others": {**long, "time": 50_000.0},
                "two": {"says": "waiting for [room] for 2 to 16 workers of 4 CPUs and 8 GPUs, which is much " * 3},
            }
        )

    shown = screen(width, ["a_name_that_is_longer_than_others", "two"], act, Remaining({"two": 40_000.0}))
    assert all(len(line) <= width for line in shown)
    if width >= 80:
        assert "1234567/10000000" in shown[0] and re.search(r"(4\.1 d|98 h 36 min) left *$", shown[0])
        assert "loss 123.4" in shown[0]
        assert "waiting for [room]" in shown[1] and "0 of 1 stages, about" in shown[2]


def test_what_a_count_has_no_room_for_is_left_out_by_worth():
    count = Count(12_000, 150_000, "images", 1230.0, 112.2, {"loss": 0.4321, "image_loss": 0.2})
    assert count.text() == "12000/150000 images, 1230 images/s, loss 0.4321, image_loss 0.2, 1 min 52 s left"
    assert count.text(70) == "12000/150000 images, 1230 images/s, loss 0.4321, 1 min 52 s left"
    assert count.text(50) == "12000/150000, 1230/s, loss 0.4321, 2 min left"
    assert count.text(20) == "12000/150000"
    assert Count(1, 9, "files", 0.0, float("inf"), {}).text(48) == "1/9 files"


def test_what_a_stage_says_gives_way_to_its_count_and_comes_back():
    def act(display: Display) -> None:
        display.update({"train": {"says": "starting 2 workers"}})
        display.update({"train": {**STATE, "time": time.time()}})
        display.update({"train": {"says": "saving"}})

    assert screen(80, ["train"], act)[0].rstrip().endswith("saving")


def test_the_row_of_all_stages_is_the_last_one():
    def act(display: Display) -> None:
        display.finish("ingest", 5.0, {"records": 3})
        display.start("train", "never ran")
        display.update({"train": {**STATE, "done": 100, "time": 0.0}})
        display.update({"train": {**STATE, "done": 110, "time": 10.0}})

    remaining = Remaining({"ingest": 4.0, "train": 100.0, "evaluate": 20.0})
    shown = screen(80, ["ingest"], act, remaining)
    assert shown[-1].split()[:2] == ["in", "all"]
    assert shown[-1].rstrip().endswith("1 of 3 stages, about 60 s left"), "40 steps at 1/s, and evaluate"


def test_the_first_step_has_a_line_of_its_own_in_the_log():
    """However soon it follows what was said: when a training began is read there."""

    def act(display: Display) -> None:
        display.start("train", "never ran")
        display.update({"train": {"says": "starting 2 workers"}})
        for done in (1, 2, 3):
            display.update({"train": {**STATE, "done": done, "time": time.time()}})

    assert [line.split()[2] for line in lines(plain(), act)[2:]] == ["1/150"]


def test_plain_lines_say_what_is_left_of_the_run():
    display = plain()
    display.remaining = Remaining({"ingest": 4.0, "train": 100.0})

    def act(display: Display) -> None:
        display.start("ingest", "never ran")
        display.finish("ingest", 61.0, {"records": 3})

    assert [line[9:] for line in lines(display, act)] == [
        "ingest: starting (never ran)",
        "ingest: done in 1 min 01 s; records 3",
        "1 of 2 stages, about 2 min left",
    ]


def test_what_is_predicted_says_what_is_not_known():
    assert Remaining({"a": 40.0, "b": None}).line() == "predicted: 40 s (a 40 s); not known yet: b"
    assert Remaining({"a": None}).line().startswith("predicted: nothing yet")
    known = Remaining({"a": 40.0, "b": 60.0, "c": None})
    assert known.left({"a": (10.0, float("inf"))}) is None
    known.end(["c", "other"])
    assert known.left({"a": (10.0, float("inf")), "b": (30.0, 5.0)}) == 35.0
    assert known.left({"a": (90.0, float("inf"))}) == 60.0, "what takes longer than was predicted is soon done"


def story(display: Display) -> None:
    """What a run tells, from its start to its last word."""
    with display:
        display.note("starting Ray")
        display.start("train", "never ran")
        display.update({"train": {"says": "starting 2 workers", "notes": ["a board's note"]}})
        display.update({"train": {**STATE, "done": 130, "time": 5.0, "notes": ["a board's note"]}})
        display.update({"train": {**STATE, "time": 7.0, "notes": ["a board's note"]}})
        logging.getLogger("a.library").warning("of %s", "s3://user:secret@host/x")
        with contextlib.suppress(TypeError):
            warnings.warn("an old name", DeprecationWarning, stacklevel=1)
        display.finish("train", 3.0, {"loss": 0.4, "bad": float("nan")})
        display.start("evaluate", "never ran")
        display.fail("evaluate", ValueError("no room"))
    display.last("log", "log:    /x/y.log", path="/x/y.log")
    display.last("result", "model:  /x/model")


def test_json_lines_are_the_same_story_and_nothing_else():
    out = io.StringIO()
    display = Display(JsonLines(out), Remaining({"train": 5.0, "evaluate": 9.0}))
    story(display)
    events = [json.loads(line, parse_constant=pytest.fail) for line in out.getvalue().splitlines()]
    assert all(list(event) == ["time", "level", "stage", "event", "message", "fields"] for event in events)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event["time"]) for event in events)
    told = [(event["event"], event["stage"], event["level"]) for event in events if event["event"] != "log"]
    assert told == [
        ("note", None, "info"),
        ("start", "train", "info"),
        ("note", "train", "info"),
        ("says", "train", "info"),
        ("progress", "train", "info"),
        ("done", "train", "info"),
        ("overall", None, "info"),
        ("start", "evaluate", "info"),
        ("failed", "evaluate", "error"),
        ("overall", None, "info"),
        ("result", None, "info"),
    ]
    progress = next(event for event in events if event["event"] == "progress")
    assert progress["fields"] == {"done": 130, "total": 150, "unit": "steps", "loss": 0.4321}
    logged = [event for event in events if event["event"] == "log"]
    assert logged[0]["message"] == "of s3://***@host/x" and logged[0]["level"] == "warning"
    assert logged[-1]["fields"] == {"path": "/x/y.log"}


def test_quiet_shows_last_words_and_errors(capsys):
    out = io.StringIO()
    story(Display(Errors(Lines(Console(file=out, width=80))), Remaining({"train": 5.0, "evaluate": 9.0})))
    assert [line[9:] for line in out.getvalue().splitlines()] == ["evaluate: failed"]
    last = capsys.readouterr()
    assert last.out == "model:  /x/model\n" and last.err.endswith("log:    /x/y.log\n")


def test_the_log_has_what_was_shown_and_why_it_failed(tmp_path):
    display = plain()

    def act(display: Display) -> None:
        display.note("starting Ray")
        display.start("train", "never ran")
        for says in ("starting 2 workers", "starting 2 workers", "saving"):
            display.update({"train": {"says": says}})
        display.fail("train", ValueError("no room"))

    with pytest.raises(ValueError), RunLog(str(tmp_path), "20260101-000000-abcdef") as log:
        (tmp_path / "runs").mkdir()
        display.log = log
        shown = lines(display, act)
        raise ValueError("no room") from OSError("disk full, token=abc s3://user:secret@host/x")
    logged = [line[20:] for line in (tmp_path / "runs/20260101-000000-abcdef.log").read_text().splitlines()]
    assert logged == [
        "starting Ray",
        "train: starting (never ran)",
        "train: starting 2 workers",
        "train: saving",
        "train: failed",
        "ValueError: no room",
        "disk full, token=abc s3://***@host/x",
    ]
    assert [line.split(" ", 1)[1] for line in shown[1:]] == logged[1:5]


def test_a_log_of_a_remote_storage_is_stored_at_the_end(s3):
    with RunLog(s3, "run") as log:
        log.write("a line")
    assert storage.read_bytes(log.uri).decode().endswith("a line\n")
