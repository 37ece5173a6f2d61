"""`omniloom replay`: what it refuses before anything is trained, and how it tells what it found."""

from __future__ import annotations

import pytest

from omniloom.infra.errors import InputError
from omniloom.pipelines.commands.replay import told
from omniloom.pipelines.config import load
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.replaying import replay_step


def test_what_cannot_be_replayed_is_refused(tmp_path):
    plan = make_plan(load("demo", [f"storage={tmp_path}", "stages.train.steps=10", "stages.tokenizer_joint.steps=7"]))
    trained = "tokenizer_image, tokenizer_joint, train"
    for stage, step, field, why in (
        ("ingest", 0, "--stage", f"no stage ingest, whose steps can be replayed; expected one of {trained}"),
        ("train", 10, "--step", "expected less than stages.train.steps 10, got 10"),
        ("train", 9, "--step", "the tokens that it is trained on are not there"),
        ("tokenizer_joint", 7, "--step", "expected less than stages.tokenizer_joint.steps 7, got 7"),
        ("tokenizer_joint", 6, "--step", "the records that it is trained on are not there"),
    ):
        with pytest.raises(InputError, match=why) as caught:
            replay_step(plan, stage, step)
        assert caught.value.field == field


def test_trainings_of_other_stages_are_known_too(tmp_path):
    for preset, trained, stage, lacks in (
        ("distill", "tokenizer_image, tokenizer_joint, train, distill", "distill", "tokens"),
        ("captions", "train_scorer", "train_scorer", "records"),
    ):
        plan = make_plan(load(preset, [f"storage={tmp_path}"]))
        with pytest.raises(InputError, match=f"expected one of {trained}$"):
            replay_step(plan, "ingest", 0)
        with pytest.raises(InputError, match=f"the {lacks} that it is trained on are not there"):
            replay_step(plan, stage, 0)


def test_it_tells_whether_the_step_is_the_same():
    found = {"step": 7, "from": 5, "ranks": 2, "row": {"step": 8, "loss": 2.5}, "loss": 2.5, "equal": True}
    assert told(found) == (
        "step 7, trained again from step 5 on 2 ranks; its loss is that of the row of step 8, 2.5, bit for bit"
    )
    assert told(found | {"ranks": 1, "loss": 2.25, "equal": False}).endswith(
        "on 1 rank; the row of step 8 has the loss 2.5, and here it is 2.25"
    )
    assert told(found | {"equal": None}).endswith("; no row of the curves can be compared with it")
