"""What `plan` and `doctor` know of `distill` and `train_scorer`: memory with the teacher and with all folds, seconds by
what a step does more; without torch but where parameters are counted."""

from __future__ import annotations

import json

import pytest

from omniloom.infra.artifacts import Artifact
from omniloom.models.unified.parameters import num_parameters
from omniloom.models.unified.seconds import pass_seconds, update_seconds
from omniloom.pipelines import fitting, measuring, sizing, takes
from omniloom.pipelines.checks import with_upstream
from omniloom.pipelines.config import load
from omniloom.pipelines.measuring import Measured
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.trainings import step_cost, training_of
from omniloom.stages.train.memory import needs_room, one_pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))


def trainings(preset: str, *overrides: str) -> dict:
    config = load(preset, ["storage=/nowhere", *overrides])
    found = {stage.name: training_of(own, upstream) for stage, own, upstream in with_upstream(config)}
    return {name: training for name, training in found.items() if training}


def test_a_teacher_lies_whole_beside_the_model():
    """In float32 whatever is computed in, on every worker and under every ZeRO stage; all else as of `train`."""
    for stage, precision in ((1, "fp32"), (3, "bf16")):
        same = [
            f"stages.{name}.engine={{zero_stage: {stage}, precision: {precision}}}" for name in ("train", "distill")
        ]
        found = trainings("distill", "stages.train.optimizer.muon=null", *same)
        plain, distilled = found["train"].memory, found["distill"].memory
        teacher = 4 * num_parameters(found["distill"].model)
        assert distilled == plain | {"teacher": teacher}
        assert found["distill"].least["teacher"] == teacher and "teacher" not in found["train"].least
    told = sizing.least(load("distill", ["storage=/nowhere"]))
    assert told["distill"]["teacher_bytes"] == teacher
    room = told["distill"]["memory_per_worker_bytes"] - told["train"]["memory_per_worker_bytes"]
    assert room == teacher


def test_what_the_teacher_takes_is_no_room_for_activations():
    one = trainings("distill")["distill"]

    def least(distillation) -> int:
        """Bytes of a device that keeps activations."""
        low, high = 0, 1 << 34
        while high - low > 1:
            middle = (low + high) // 2
            crowded = needs_room(one.config, one.model, 2, middle, distillation)
            low, high = (middle, high) if crowded else (low, middle)
        return high

    more = least(one.distillation) - least(None)
    assert 0.85 * more == pytest.approx(one.memory["teacher"], abs=2)


@pytest.mark.parametrize(
    "how, forward",
    [
        ("method: consistency", 3),
        ("method: consistency, guidance_scale: 1", 2),
        ("method: reflow", 40),
        ("method: shortcut", 6),
    ],
    ids=str,
)
def test_a_step_of_distillation_costs_its_teachers_passes_more(how, forward):
    """A guided pass is two; under consistency the student is asked once more. Each is a third of a step, without the
    text head."""
    found = trainings("distill", f"stages.distill={{{how}, workers: {{count: 2}}}}")["distill"]
    config, model, p = found.config, found.model, one_pass(found.config, found.model, 2)
    silent = pass_seconds(model, type(p)(**{**p.__dict__, "labels": 0}))
    step = pass_seconds(model, p) + update_seconds(num_parameters(model)) + forward / 3 * silent
    assert step_cost(found) == pytest.approx(step)
    assert found.units == config.batch_rows * config.packing.length


def test_consistency_is_about_two_steps_of_training():
    found = trainings("distill")
    assert step_cost(found["distill"]) / step_cost(found["train"]) == pytest.approx(2, rel=0.15)


def test_what_never_ran_is_predicted_by_what_the_machine_does(tmp_path):
    """By steps of its own kind, where those were timed, else by those of `train`."""
    config = load("distill", [f"storage={tmp_path}"])
    found = trainings("distill")
    assert takes.of(make_plan(config))["distill"].seconds is None
    measuring._keep(found["train"], Measured(3.0, "2026-11-28"))
    told = takes.of(make_plan(config))
    assert told["distill"].seconds == pytest.approx(300 * 3.0 * step_cost(found["distill"]))
    assert told["distill"].basis == "as measured here on 2026-11-28" and told["distill"].checkpoint_bytes
    measuring._keep(found["distill"], Measured(4.0, "2026-11-29"))
    again = takes.of(make_plan(config))
    assert again["distill"].seconds == pytest.approx(4 / 3 * told["distill"].seconds)
    assert again["train"].seconds == told["train"].seconds


def test_the_run_before_tells_what_other_settings_take(tmp_path):
    """Of reflow a step takes as much longer as its teacher says more."""
    reflow = "stages.distill.method=reflow"
    plan = make_plan(load("distill", [f"storage={tmp_path}", reflow]))
    before = trainings("distill")["distill"]
    made = plan["distill"].config.model_copy(update={"method": "consistency"}).model_dump(mode="json")
    plan["distill"].known = Artifact(
        "distill",
        "0123456789abcdef",
        "",
        {
            "config": made,
            "metrics": {"steps": 300, "units": 6e5, "units_per_second": 1000.0, "seconds": 600.0, "workers": 2},
            "times": {"seconds": 660.0, "ended": "2026-11-27T12:00:00+00:00"},
        },
    )
    found, now = takes.of(plan)["distill"], trainings("distill", reflow)["distill"]
    assert found.units_per_second == pytest.approx(1000 * before.cost / now.cost)
    assert now.cost > 5 * before.cost and "0123456789ab" in found.basis


def test_a_scorers_folds_are_trained_side_by_side(tmp_path):
    """Each with its own state; of their passes one at a time is there."""
    two, one = (trainings("captions", f"stages.train_scorer.folds={n}")["train_scorer"] for n in (2, 1))
    assert {name: two.memory[name] for name in one.least} == {name: 2 * size for name, size in one.least.items()}
    assert two.memory["activations"] == one.memory["activations"] > 0
    assert step_cost(two) == pytest.approx(2 * step_cost(one)) and two.units == 2 * one.units
    config = load("captions", [f"storage={tmp_path}"])
    size = sizing.sizes(config)["train_scorer"]
    assert size["memory_per_worker_bytes"] == sum(two.memory.values()) and size["pairs_per_step"] == 128
    measuring._keep(two, Measured(2.0, "2026-11-28"))
    told = takes.of(make_plan(config))["train_scorer"]
    assert told.seconds == pytest.approx(two.config.steps * 2.0 * step_cost(two)) and told.unit == "pairs"
    assert told.units_per_second == pytest.approx(128 / (2.0 * step_cost(two)))


def test_what_is_taken_as_it_is_has_weights_alone(tmp_path):
    """A pretrained model that nothing trains: no seconds, no checkpoints."""
    from omniloom.models.features.clip_config import clip_document
    from omniloom.models.scorer.config import ScorerConfig
    from omniloom.models.scorer.sizes import num_parameters as of_scorer
    from omniloom.stages.scorer.config import TrainScorerConfig

    clip = ScorerConfig().clip(300, 299)
    (tmp_path / "config.json").write_text(json.dumps(clip_document(clip)))
    found = training_of(TrainScorerConfig(pretrained=str(tmp_path), steps=0), {})
    assert sum(found.memory.values()) == 4 * of_scorer(clip, "clip") == sum(found.least.values())
    assert not found.measurable


@pytest.mark.parametrize("preset, stage", [("distill", "distill"), ("captions", "train_scorer")])
def test_on_a_gpu_it_is_told_what_fits(preset, stage):
    on = f"stages.{stage}.workers={{count: 2, gpus: 1, accelerator_type: H100}}"
    config = load(preset, ["storage=/nowhere", on, f"stages.{stage}.engine.precision=bf16"])
    training = trainings(preset, on, f"stages.{stage}.engine.precision=bf16")[stage]
    told = fitting.of_stage(config, stage, "H100")
    assert told.fits and told.needed == sum(training.memory.values())
    small = fitting.of_stage(config, stage, "H100", 4 << 20)
    assert not small.fits and small.changes
