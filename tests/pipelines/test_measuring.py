"""`doctor --measure`: steps of a training are timed here, and `plan` predicts by them what never ran."""

from __future__ import annotations

import json

import pytest

from omniloom.infra.errors import InputError
from omniloom.pipelines import doctor, forecast, measuring
from omniloom.pipelines.config import load
from omniloom.pipelines.measuring import Measured
from omniloom.pipelines.plan import make_plan
from omniloom.stages.train import cost
from omniloom.stages.train.config import expected_config


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))


def predicted(tmp_path, *overrides: str) -> forecast.Forecast:
    return forecast.of(make_plan(load("demo", [f"storage={tmp_path}", *overrides])))["train"]


def step_cost(config) -> float:
    tokens, tokenizer = config.stages.pretokenize, config.stages.tokenizer_image
    return cost.step_cost(config.stages.train, expected_config(config.stages.train, tokens, tokenizer.model))


@pytest.mark.parametrize("overrides", [[], ["stages.train.model.layers=12"], ["stages.train.workers.count=1"]], ids=str)
def test_a_size_that_was_not_measured_is_scaled(tmp_path, overrides):
    """One core takes three times what the formulas calculate."""
    config = load("demo", [f"storage={tmp_path}", *overrides])
    measuring._keep(config.stages.train, Measured(3.0, "2026-11-28"))
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
    measuring._keep(load("demo", [f"storage={tmp_path}"]).stages.train, Measured(3.0, "2026-11-28"))
    assert predicted(tmp_path).seconds and predicted(tmp_path, *overrides).seconds is None


def test_a_damaged_file_is_none(tmp_path):
    train = load("demo", [f"storage={tmp_path}"]).stages.train
    measuring._keep(train, Measured(3.0, "2026-11-28"))
    measuring._file(train).write_text("{")
    assert measuring.known(train) is None


def test_a_cluster_elsewhere_is_not_measured(tmp_path):
    with pytest.raises(InputError, match="--measure") as error:
        measuring.measure(load("demo", [f"storage={tmp_path}", "cluster.address=10.0.0.1:6379"]))
    assert error.value.field == "cluster.address"


@pytest.mark.slow
def test_real_steps_are_timed_and_kept(tmp_path):
    sized = doctor.examine("demo", [f"storage={tmp_path}"], measure=True)["sizes"]["train"]
    found = predicted(tmp_path)
    assert 0 < sized["seconds_per_step"] < 60
    assert found.units_per_second == pytest.approx(sized["tokens_per_second"])
    assert json.loads(json.dumps(sized))["tokens_per_second"] == pytest.approx(2048 / sized["seconds_per_step"])
