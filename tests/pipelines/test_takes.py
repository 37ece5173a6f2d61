"""What `plan` predicts: from what the stage took before, scaled to what it is to do now; without torch."""

from __future__ import annotations

import json

import pytest

from omniloom.infra.artifacts import Artifact
from omniloom.models.unified.flops import token_flops
from omniloom.models.unified.parameters import num_parameters
from omniloom.models.unified.seconds import pass_seconds, update_seconds
from omniloom.pipelines import takes
from omniloom.pipelines.config import load
from omniloom.pipelines.plan import make_plan
from omniloom.pipelines.sizing import sizes
from omniloom.pipelines.takes import duration
from omniloom.stages.train.config import expected_config
from omniloom.stages.train.memory import one_pass

METRICS = {
    "train": {"steps": 100, "units": 50_000.0, "units_per_second": 1000.0, "seconds": 50.0, "padding": 0.0},
    "tokenizer_image": {"steps": 10, "units": 640.0, "seconds": 8.0, "parameters": 1000},
    "ingest": {},
}


def planned(tmp_path, *overrides: str, made_with: tuple[str, ...] = (), **metrics):
    """The demo's plan, where each stage ran once before with these metrics and with `made_with`."""
    plan = make_plan(load("demo", [f"storage={tmp_path}", *overrides]))
    before = load("demo", [f"storage={tmp_path}", *made_with])
    for stage in plan.stages:
        stage.known = Artifact(
            stage.name,
            "0123456789abcdef",
            "",
            {
                "config": getattr(before.stages, stage.name).model_dump(mode="json", exclude={"workers"}),
                "metrics": METRICS.get(stage.name, {}) | metrics,
                "times": {"seconds": 60.0, "ended": "2026-11-27T12:00:00+00:00"},
                "sources": {"bytes": plan["ingest"].sources["bytes"] // 2},
            },
        )
    return plan


def test_the_same_again_takes_as_long(tmp_path):
    plan = planned(tmp_path, "stages.train.steps=200")
    found = takes.of(plan)
    train, config = found["train"], plan["train"].config
    assert train.units_per_second == 1000 and train.unit == "tokens"
    tokens = 200 * config.batch_rows * config.packing.length
    assert train.seconds == pytest.approx(10 + tokens / 1000)  # what start and end took stays
    assert found["tokenizer_image"].seconds == pytest.approx(52 + 64 * plan["tokenizer_image"].config.steps / 80)
    assert found["ingest"].seconds == pytest.approx(120, rel=0.01)  # of twice the bytes
    assert train.cpu_hours == pytest.approx(2 * train.seconds / 3600) and train.gpu_hours is None
    assert "0123456789ab" in train.basis


@pytest.mark.parametrize("gpus", [1, 0])
def test_a_larger_model_takes_as_much_longer_as_it_computes(tmp_path, gpus):
    wide, there = "stages.train.model.layers=12", f"stages.train.workers={{count: 2, gpus: {gpus}}}"
    plan = planned(tmp_path, wide, there, made_with=(there,), gpus=gpus)
    config, tokens, tokenizer = (plan[n].config for n in ("train", "pretokenize", "tokenizer_image"))
    models = [load("demo", [wide] * many).stages.train for many in (1, 0)]
    sized = [expected_config(m, tokens, tokenizer.model) for m in models]
    now, then = (token_flops(model, config.packing.length) for model in sized)
    if not gpus:  # 8 rows in two workers' passes; what is around the blocks stays as it was
        one = [one_pass(config, model, 2) for model in sized]
        now, then = (
            pass_seconds(model, p) + update_seconds(num_parameters(model)) for model, p in zip(sized, one, strict=True)
        )
    rate = takes.of(plan)["train"].units_per_second
    assert now > 1.5 * then and rate == pytest.approx(1000 * then / now)


def test_workers_share_what_there_is_to_do(tmp_path):
    alone = takes.of(planned(tmp_path, "stages.train.workers.count=1", workers=2))["train"]
    both = takes.of(planned(tmp_path, workers=2))["train"]
    # One worker's passes have twice the rows, so that fewer calls are made for them.
    assert both.units_per_second == 1000 and 1.0 < alone.units_per_second / 500 < 1.1
    devices = "stages.train.workers={count: 1, gpus: 1}"
    assert takes.of(planned(tmp_path, devices, workers=2, gpus=1))["train"].units_per_second == 500


@pytest.mark.parametrize(
    "overrides, metrics",
    [
        (["stages.train.engine.precision=bf16"], {}),
        (["stages.train.workers.gpus=1"], {"gpus": 0}),
    ],
)
def test_another_device_or_precision_tells_nothing(tmp_path, overrides, metrics):
    train = takes.of(planned(tmp_path, *overrides, **metrics))["train"]
    assert train.seconds is None and train.checkpoint_bytes


def test_gpus_without_a_run_are_taken_to_reach_a_share_of_their_peak(tmp_path):
    plan = planned(tmp_path, "stages.train.workers={count: 2, gpus: 1, peak_tflops: 100}", gpus=0)
    train = takes.of(plan)["train"]
    config, tokens, tokenizer = (plan[n].config for n in ("train", "pretokenize", "tokenizer_image"))
    cost = token_flops(expected_config(config, tokens, tokenizer.model), config.packing.length)
    assert train.units_per_second == pytest.approx(0.4 * 2 * 100e12 / cost)
    assert train.gpu_hours == pytest.approx(2 * train.seconds / 3600)
    assert train.checkpoint_pause_seconds == pytest.approx(train.checkpoint_bytes / 2 / 20e9)


def test_memory_of_a_worker_is_what_doctor_says(tmp_path):
    """Without a run before; by what takes it."""
    config = load("demo", [f"storage={tmp_path}", "stages.train.workers={count: 2, accumulate: 2}"])
    told = takes.of(make_plan(config))["train"].worker_memory_bytes
    size = sizes(config)["train"]
    assert {f"{name}_bytes": value for name, value in told.items()}.items() <= size.items()
    assert sum(told.values()) == size["memory_per_worker_bytes"] and min(told["weights"], told["activations"]) > 0


def test_plans_tell_it_in_both_forms(tmp_path):
    plan = planned(tmp_path)
    found = takes.of(plan)
    stages = {stage["name"]: stage for stage in json.loads(json.dumps(takes.described(plan, found)))["stages"]}
    assert stages["train"]["predicted"]["unit"] == "tokens"
    lines = list(takes.lines(found))
    train = next(line for line in lines if line.startswith("train: 1,000 tokens a second"))
    assert " MiB a worker; checkpoints of " in train
    assert lines[-1].startswith("predicted: ") and "CPU-hours" in lines[-1]


def test_hours_have_a_price_where_the_config_gives_one(tmp_path):
    """A CPU's and a GPU's hour; of every stage whose time is known."""
    devices = "stages.train.workers={count: 2, cpus: 3, gpus: 1}"
    plan = planned(tmp_path, devices, "prices={cpu_hour: 0.5, gpu_hour: 4, currency: EUR}", gpus=1)
    found = takes.of(plan)
    train, tokens = found["train"], found["pretokenize"]
    assert train.cost == pytest.approx((2 * 3 * 0.5 + 2 * 4) * train.seconds / 3600)
    needs = plan["pretokenize"].stage.needs(plan["pretokenize"].config)
    assert tokens.cost == pytest.approx(0.5 * (needs.cpus + needs.worker_cpus) * 60 / 3600) and tokens.cost > 0
    lines = list(takes.lines(found))
    total = sum(f.cost for f in found.values() if f.cost is not None)
    assert lines[-1].endswith(f"{total:,.2f} EUR") and any(line.startswith("pretokenize: ") for line in lines)
    only_gpus = takes.of(planned(tmp_path, devices, "prices.gpu_hour=4", gpus=1))
    assert only_gpus["train"].cost == pytest.approx(8 * train.seconds / 3600) and only_gpus["pretokenize"].cost is None


def test_without_prices_nothing_is_said_of_cost(tmp_path):
    found = takes.of(planned(tmp_path))
    assert all(f.cost is None for f in found.values()) and "USD" not in "".join(takes.lines(found))


def test_what_never_ran_is_not_guessed(tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))  # where this machine's measurements lie
    found = takes.of(make_plan(load("demo", [f"storage={tmp_path}"])))
    assert set(found) == {"train"} and found["train"].seconds is None
    plan = make_plan(load("demo", [f"storage={tmp_path}"]))
    trained = "ingest, tokenizer_image, tokenizer_joint, pretokenize, train"
    assert list(takes.unknown(plan, found)) == [
        f"not known yet: {trained}, evaluate; a stage's seconds are known once it ran here, or of {trained} by "
        "omniloom doctor CONFIG --measure"
    ]
    known = {planned.name: takes.Takes(seconds=1.0) for planned in plan.to_execute}
    assert not list(takes.unknown(plan, known))
    assert not list(takes.lines({"x": takes.Takes()}))


@pytest.mark.parametrize("seconds, said", [(8, "8 s"), (89, "89 s"), (120, "2 min"), (7200, "2 h"), (864000, "10 d")])
def test_durations(seconds, said):
    assert duration(seconds) == said
