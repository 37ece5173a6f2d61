"""The detector of bad steps, in closed form."""

from __future__ import annotations

import json
import math

import pytest
from pydantic import ValidationError

from omniloom.infra.training.bad_steps import BadStep, BadSteps, above_the_past, deviations, to_blame
from omniloom.infra.training.config import EngineConfig


def detector(**fields) -> BadSteps:
    return BadSteps(EngineConfig(**{"on_bad_step": "skip", "spike_window": 8, **fields}))


def test_deviations_are_of_median_and_median_absolute_deviation():
    # median 3, absolute deviations 2 1 0 1 97: their median is 1, the one outlier changes neither
    assert deviations(9.0, [1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(6 / 1.4826)
    assert deviations(3.0, [1.0, 2.0, 3.0, 4.0, 100.0]) == 0
    assert deviations(0.0, [1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx(-3 / 1.4826)


def test_where_nothing_moves_a_spread_is_a_share_of_the_median():
    assert deviations(2.1, [2.0] * 5) == pytest.approx(0.1 / 0.02)
    assert deviations(2.1, [2.0] * 5, least_spread=0.1) == pytest.approx(0.1 / 0.2)
    assert deviations(-2.1, [-2.0] * 5) == pytest.approx(-0.1 / 0.02)


def test_a_spike_is_told_from_its_past_once_half_of_it_is_there():
    found = detector()
    assert found.judge({"loss": 50.0}) is None  # nothing to compare with yet
    for value in (2.0, 2.1, 1.9):
        assert found.judge({"loss": value}) is None
    # median 2.05 of 2.2, 2.0, 2.1, 1.9 without a fall; deviations .15, .05, .05, .15: spread 1.4826 * 0.1
    past = [1.9, 2.0, 2.1, 2.2]
    assert detector_with(past).judge({"loss": 2.05 + 7.9 * 0.14826}) is None
    why = detector_with(past).judge({"loss": 2.05 + 8.1 * 0.14826})
    assert why == "loss is 3.251, 8.1 deviations above the last steps, whose median is 2.05"


def test_a_fall_is_expected_to_go_on_at_half_the_pace():
    # slopes over two steps: (6 - 8) / 2 twice: -1 a step. At the fifth place 9 -> 9 - 4/2, 8 -> 8 - 3/2, ...
    assert above_the_past(6.0, [9.0, 8.0, 7.0, 6.0]) == pytest.approx((6.0 - 6.25) / (1.4826 * 0.5))
    assert above_the_past(9.0, [6.0, 7.0, 8.0, 9.0]) == pytest.approx(1.5 / 1.4826)  # what rises is not
    # one spike changes no slope but one: 5, 4.5, 67, 3.5, 3, 2.5, 2, 1.5 at the ninth place
    assert above_the_past(6.0, [9.0, 8.0, 70.0, 6.0, 5.0, 4.0, 3.0, 2.0]) == pytest.approx(2.75 / (1.4826 * 1.25))


def detector_with(values, **fields) -> BadSteps:
    found = detector(**fields)
    for value in values:
        assert found.judge({"loss": value}) is None
    return found


def test_a_fall_is_no_spike_and_a_bad_step_is_not_remembered():
    found = detector_with([2.0, 2.0, 2.0, 2.0])
    assert found.judge({"loss": 0.1}) is None
    before = found.state
    assert found.judge({"loss": 9.0}) and found.judge({"loss": 9.0}) and found.state == before


def test_the_past_has_a_length():
    found = detector_with([2.0] * 8)
    for value in (2.02, 2.04, 2.06, 2.08, 2.10):  # each by itself no spike
        assert found.judge({"loss": value}) is None
    assert found.windows["loss"] == [2.0, 2.0, 2.0, 2.02, 2.04, 2.06, 2.08, 2.10]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_bad_at_once(value):
    found = detector()
    assert found.judge({"loss": 1.0, "grad_norm": value}) == f"grad_norm is {value}"
    assert found.windows == {}  # nothing of a bad step is remembered, its loss neither


def test_figures_have_pasts_of_their_own():
    found = detector()
    for _ in range(4):
        assert found.judge({"image loss": 1.0}) is None and found.judge({"video loss": 9.0}) is None
    assert found.judge({"video loss": 9.1}) is None
    assert found.judge({"image loss": 9.0}).startswith("image loss is 9")


@pytest.mark.parametrize(
    ("fields", "sigmas", "active"),
    [
        ({"on_bad_step": "stop"}, None, False),
        ({"on_bad_step": "stop", "spike_sigmas": 4}, 4, True),
        ({"on_bad_step": "skip"}, 8, True),
        ({"on_bad_step": "rollback", "spike_sigmas": 8}, 8, True),
    ],
)
def test_when_steps_are_judged(fields, sigmas, active):
    found = BadSteps(EngineConfig(**fields))
    assert (found.sigmas, found.active) == (sigmas, active)


def test_a_limit_has_a_last_word():
    found = detector(max_bad_steps=2)
    assert found.add(BadStep(3, "loss is nan", "skip")) is None
    assert found.add(BadStep(5, "loss is nan", "skip")) is None
    assert "bad step number 3, and engine.max_bad_steps is 2" in found.add(BadStep(6, "loss is nan", "skip"))
    assert detector(max_bad_steps=0).add(BadStep(0, "loss is nan", "skip"))


def test_what_is_left_out_is_counted_and_survives_a_checkpoint():
    found = detector_with([2.0, 2.1, 2.2, 2.3])
    found.add(BadStep(4, "loss is nan", "skip"))
    found.add(BadStep(7, "loss is nan", "rollback", [{"id": "a"}, {"id": "b"}]))
    found.add(BadStep(9, "loss is nan", "rollback"))
    assert [found.leaves_out(step) for step in (4, 7, 9)] == [False, False, True]
    assert found.was_bad(7) and not found.was_bad(8)
    assert found.counts == {"bad_steps": 3, "steps_left_out": 2, "documents_left_out": 2}
    resumed = detector()
    resumed.restore(json.loads(json.dumps(found.state)))
    assert resumed.state == found.state and resumed.documents == [{"id": "a"}, {"id": "b"}]
    assert resumed.judge({"loss": 9.0}) == found.judge({"loss": 9.0}) is not None


def test_a_checkpoint_from_before_is_told_of_what_made_the_training_go_back():
    before = detector_with([2.0, 2.1])
    before.add(BadStep(1, "loss is nan", "skip"))
    kept = json.loads(json.dumps(before.state))
    before.add(BadStep(4, "loss is inf", "rollback", [{"id": "a"}]))
    later = before.state["found"]
    resumed = detector()
    resumed.restore(kept, later)
    resumed.restore(kept, later)
    assert resumed.windows == {"loss": [2.0, 2.1]} and [bad.step for bad in resumed.found] == [1, 4]


def test_the_config_knows_what_can_be_done():
    with pytest.raises(ValidationError, match="on_bad_step"):
        EngineConfig(on_bad_step="ignore")


def documents(**figures) -> list[dict]:
    """Six texts alike, with the figures of some of them changed."""
    found = [{"id": f"t{n}", "task": "text", "loss": 2.0 + n / 100, "grad_norm": 1.0 + n / 100} for n in range(6)]
    return [document | figures.get(document["id"], {}) for document in found]


def test_the_document_that_stands_out_is_to_blame():
    assert to_blame(documents(), 6) == []
    (found,) = to_blame(documents(t2={"loss": 6.0}), 6)
    # others: 2.00 2.01 2.03 2.04 2.05, median 2.03; a tenth of it is more than their spread
    assert found["id"] == "t2" and found["deviations"] == pytest.approx((6.0 - 2.03) / 0.203)
    assert [d["id"] for d in to_blame(documents(t0={"grad_norm": 3.0}, t4={"loss": 9.0}), 6)] == ["t4", "t0"]
    assert to_blame(documents(t0={"grad_norm": 0.0, "loss": 0.0}), 6) == []


def test_what_is_not_finite_is_to_blame_alone():
    found = to_blame(documents(t1={"loss": math.nan}, t3={"loss": 9.0}, t5={"grad_norm": math.inf}), 6)
    assert [d["id"] for d in found] == ["t1", "t5"]


def test_documents_are_compared_with_those_of_their_task():
    pictures = [{"id": f"p{n}", "task": "draw", "loss": 20.0, "grad_norm": 9.0} for n in range(5)]
    assert to_blame(documents() + pictures, 6) == []
    assert to_blame(documents()[:4] + [{"id": "p", "task": "draw", "loss": 20.0, "grad_norm": 9.0}], 6) == []
    (found,) = to_blame(documents() + pictures[:4] + [pictures[4] | {"loss": 40.0}], 6)
    assert found["id"] == "p4"
