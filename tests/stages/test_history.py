"""The curves of a training stage: one row a logged step, however often the stage was interrupted."""

from __future__ import annotations

import corpora

from omniloom.stages.reporting import history
from omniloom.stages.reporting.history import History


def test_a_resumed_curve_has_no_doubled_step(tmp_path):
    first = History(str(tmp_path), corpora.Silent())
    first.rewind(0)
    for step in (2, 4):
        first.add({"loss": 1 / step}, step, units=10.0 * step)
    first.add({"validation_loss": 0.25}, 4)
    first.add({"validation_loss": 0.5}, 4)  # repeated: it replaces the row
    first.add({"loss": 1 / 6}, 6, units=60.0)
    first.keep()
    first.add({"loss": 1 / 8}, 8, units=80.0)
    assert len(history.load(str(tmp_path / "history.jsonl"))) == 4, "written with checkpoints alone"
    tracker = corpora.Silent()
    second = History(str(tmp_path), tracker)
    second.rewind(4)  # the last checkpoint
    second.add({"loss": 0.2}, 6, units=60.0)
    assert tracker.metrics == [(6, {"train/loss": 0.2})]
    second.save(str(tmp_path / "report" / "history.jsonl"))
    rows = history.load(str(tmp_path / "report" / "history.jsonl"))
    assert rows == [
        {"step": 2, "units": 20.0, "loss": 0.5},
        {"step": 4, "units": 40.0, "loss": 0.25},
        {"step": 4, "validation_loss": 0.5},
        {"step": 6, "units": 60.0, "loss": 0.2},
    ]
    assert history.series(rows) == {"loss": [(2, 0.5), (4, 0.25), (6, 0.2)], "validation_loss": [(4, 0.5)]}


def test_a_forced_run_begins_anew(tmp_path):
    first = History(str(tmp_path), corpora.Silent())
    first.add({"loss": 1.0}, 5)
    first.keep()
    again = History(str(tmp_path), corpora.Silent())
    again.rewind(0)
    assert again.rows == []


def test_a_figure_that_is_none_is_null_in_the_file_and_a_gap_in_the_curve(tmp_path):
    import json
    import math

    written = History(str(tmp_path), corpora.Silent())
    written.add({"loss": 1.0}, 1)
    written.add({"loss": math.nan, "psnr": math.inf}, 2)
    written.keep()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None, "psnr": None}]
    found = history.series(rows)["loss"]
    assert found[0] == (1, 1.0) and found[1][0] == 2 and math.isnan(found[1][1])
