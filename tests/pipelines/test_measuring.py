"""`doctor --measure`: steps of a training are timed here, and `plan` predicts by them what never ran."""

from __future__ import annotations

import json

import pytest

from omniloom.infra.errors import InputError
from omniloom.infra.training.config import WorkersConfig
from omniloom.pipelines import doctor, measuring, takes
from omniloom.pipelines.checks import with_upstream
from omniloom.pipelines.config import load
from omniloom.pipelines.measuring import Measured
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.trainings import Training, training_of
from omniloom.stages.tokenizer.measured import kinds
from omniloom.stages.train import cost
from omniloom.stages.train.config import expected_config


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))


def predicted(tmp_path, *overrides: str) -> takes.Takes:
    return takes.of(make_plan(load("demo", [f"storage={tmp_path}", *overrides])))["train"]


def training(config) -> Training:
    return next(training_of(own, upstream) for stage, own, upstream in with_upstream(config) if stage.name == "train")


def step_cost(config) -> float:
    tokens, tokenizer = config.stages.pretokenize, config.stages.tokenizer_image
    return cost.step_cost(config.stages.train, expected_config(config.stages.train, tokens, tokenizer.model))


@pytest.mark.parametrize("overrides", [[], ["stages.train.model.layers=12"], ["stages.train.workers.count=1"]], ids=str)
def test_a_size_that_was_not_measured_is_scaled(tmp_path, overrides):
    """One core takes three times what the formulas calculate."""
    config = load("demo", [f"storage={tmp_path}", *overrides])
    measuring._keep(training(config), Measured(3.0, "2026-11-28"))
    train, found = config.stages.train, predicted(tmp_path, *overrides)
    tokens = train.batch_rows * train.packing.length
    assert found.units_per_second == pytest.approx(tokens / (3.0 * step_cost(config)))
    assert found.seconds == pytest.approx(train.steps * 3.0 * step_cost(config))
    assert found.basis == "as measured here on 2026-11-28"


@pytest.mark.parametrize(
    "overrides",
    [
        ["stages.train.engine.precision=bf16"],
        ["stages.train.workers.cpus=2"],
        ["stages.train.workers.gpus=1"],
        ["cluster.address=10.0.0.1:6379"],
    ],
    ids=str,
)
def test_what_was_measured_tells_nothing_of_other_devices(tmp_path, overrides):
    measuring._keep(training(load("demo", [f"storage={tmp_path}"])), Measured(3.0, "2026-11-28"))
    assert predicted(tmp_path).seconds and predicted(tmp_path, *overrides).seconds is None


def test_a_damaged_file_is_none(tmp_path):
    train = training(load("demo", [f"storage={tmp_path}"]))
    measuring._keep(train, Measured(3.0, "2026-11-28"))
    measuring._file(train, "train").write_text("{")
    assert measuring.known(train) is None


def test_a_cluster_elsewhere_is_not_measured(tmp_path):
    with pytest.raises(InputError, match="--measure") as error:
        measuring.measure(load("demo", [f"storage={tmp_path}", "cluster.address=10.0.0.1:6379"]))
    assert error.value.field == "cluster.address"


@pytest.mark.slow
def test_real_steps_are_timed_and_kept(tmp_path):
    sizes = doctor.examine("demo", [f"storage={tmp_path}"], measure=True)["sizes"]
    sized, found = sizes["train"], predicted(tmp_path)
    for name in ("tokenizer_image", "tokenizer_joint"):
        told = takes.of(make_plan(load("demo", [f"storage={tmp_path}"])))[name]
        assert told.units_per_second == pytest.approx(sizes[name]["images_per_second"]) and told.checkpoint_bytes
    assert 0 < sized["seconds_per_step"] < 60
    assert found.units_per_second == pytest.approx(sized["tokens_per_second"])
    assert json.loads(json.dumps(sized))["tokens_per_second"] == pytest.approx(2048 / sized["seconds_per_step"])


def test_a_tokenizers_steps_stand_for_just_these_settings(tmp_path):
    def joint(*overrides: str) -> takes.Takes | None:
        return takes.of(make_plan(load("demo", [f"storage={tmp_path}", *overrides]))).get("tokenizer_joint")

    config = load("demo", [f"storage={tmp_path}"]).stages.tokenizer_joint
    assert joint() is None
    measuring.write(measuring._tokenizer_file(config), measuring.MeasuredTokenizer(0.5, 1000, "2026-11-28"))
    data, found = config.data, joint()
    images = data.image_ratio * data.image_batch + (1 - data.image_ratio) * data.video_batch
    assert found.seconds == pytest.approx(config.steps * 0.5) and found.unit == "images"
    assert found.units_per_second == pytest.approx(images / 0.5)
    assert found.checkpoint_bytes == 4 * 1000 * (3 + bool(config.engine.ema_decay))
    for other in ("stages.tokenizer_joint.data.image_batch=8", "stages.tokenizer_joint.workers.count=1"):
        assert joint(other) is None
    assert joint("stages.tokenizer_joint.seed=7").seconds == found.seconds


def test_the_kinds_of_a_tokenizers_steps_are_those_that_it_has(tmp_path):
    config = load("demo", [f"storage={tmp_path}"]).stages.tokenizer_joint
    found = kinds(config)
    assert sum(share for _, share in found.values()) == pytest.approx(1)
    assert {kind.clips for kind in found} == set(config.data.kinds)
    by_clips = sum(share for kind, (_, share) in found.items() if kind.clips == "image")
    assert by_clips == pytest.approx(config.data.image_ratio)
    trained = sum(share for kind, (_, share) in found.items() if kind.critic)
    assert trained == pytest.approx(1 - config.loss.adversarial_start / config.steps, abs=0.01)
    for kind, (step, _) in found.items():
        assert kind.critic == config.loss.trains_discriminator(step)


def test_ranks_that_share_this_machine_s_cpus_are_timed_side_by_side(monkeypatch):
    monkeypatch.setattr(measuring.os, "cpu_count", lambda: 4)
    counts = [
        measuring._side_by_side(WorkersConfig(count=count, cpus=cpus))
        for count, cpus in ((1, 1), (2, 1), (8, 1), (8, 2))
    ]
    assert counts == [1, 2, 4, 2]
    assert measuring._side_by_side(WorkersConfig(count=8, cpus=8)) == 1  # more than there are
    assert measuring._side_by_side(WorkersConfig(count=2, gpus=1)) == 1
