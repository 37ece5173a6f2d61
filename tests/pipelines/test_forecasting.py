"""Forecasts: curves against formulas that are known, the ladder as a sweep, what a budget buys against a search by
hand, and what of the largest size is told from the others."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import yaml
from scipy.optimize import approx_fprime

from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.parameters import num_parameters
from omniloom.pipelines import cli
from omniloom.pipelines.config import load
from omniloom.pipelines.forecasting import choosing, command, laws, page, rungs, seen
from omniloom.pipelines.forecasting.laws import Law
from omniloom.pipelines.sweeps.config import GoalConfig
from omniloom.stages.train.cost import step_cost
from omniloom.stages.train.memory import worker_memory

LAW = Law(1.7, 40.0, 0.3, 200.0, 0.4)
N, D = np.repeat([3e4, 6e4, 1.2e5, 2.5e5], 3), np.tile([1e5, 2e5, 4e5], 4)
FORECAST = {
    "sizes": [{"width": 16 * n, "heads": n} for n in (2, 3, 4, 6)],
    "steps": [60, 120, 240],
    "resamples": 20,
}


# ---- curves ----


def test_a_law_is_found_from_what_it_says():
    found = laws.fit(N, D, LAW(N, D))
    assert found(1e7, 1e8) == pytest.approx(1.7 + 40 * 1e7**-0.3 + 200 * 1e8**-0.4, rel=1e-4)
    assert found.size_power == pytest.approx(0.3, abs=1e-3) and found.data_power == pytest.approx(0.4, abs=1e-3)


def test_one_training_that_went_wrong_does_not_bend_the_curve():
    losses = LAW(N, D)
    losses[5] *= 1.5
    assert laws.fit(N, D, losses)(1e6, 1e6) == pytest.approx(float(LAW(1e6, 1e6)), rel=5e-3)


def test_the_search_goes_along_the_gradient():
    rng = np.random.default_rng(0)
    x, data = np.array([0.3, 0.5, -0.2, 0.4, 0.6]), (rng.normal(size=9), rng.normal(size=9), rng.normal(size=9))
    expected = approx_fprime(x, lambda at: laws._left(at, *data)[0], 1e-8)
    np.testing.assert_allclose(laws._left(x, *data)[1], expected, rtol=1e-3)


def test_the_interval_of_noisy_trainings_holds_the_truth_and_grows_with_the_noise():
    rng, widths = np.random.default_rng(1), []
    for noise in (0.001, 0.01):
        fitted = laws.fit_resampled(N, D, LAW(N, D) * np.exp(noise * rng.normal(size=12)), 40, 0)
        low, high = fitted.interval(5e5, 4e5)
        assert low < LAW(5e5, 4e5) < high and len(fitted.resampled) == 40
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def test_a_ladder_that_says_nothing_of_sizes_is_known_by_its_power():
    assert laws.fit(N, D, LAW(N, D)).knows == {"size": True, "data": True}
    only_data = Law(1.7, 0.0, 1.0, 200.0, 0.4)(N, D) * (1 + 0.02 * (N == N.max()))  # the largest does worse
    assert not laws.fit(N, D, only_data).knows["size"]


@pytest.mark.parametrize("chosen", [slice(0, 6), slice(0, None, 3), slice(0, 4)])
def test_too_few_trainings_are_refused(chosen):
    with pytest.raises(ValueError, match="five trainings or more, of three sizes and two amounts"):
        laws.fit(N[chosen], D[chosen], LAW(N, D)[chosen])


# ---- the ladder ----


def text_pipeline(folder, **section) -> str:
    """Of a language model of width 96 with 6 heads."""
    (folder / "text").mkdir(exist_ok=True)
    (folder / "text" / "a.txt").write_text("\n\n".join(f"Line {n} of a text about {n * 7} things." for n in range(400)))
    config = {
        "name": "tiny",
        "storage": str(folder / "runs"),
        "tracking": {"system_metrics": False},
        "stages": {
            "ingest": {"sources": [{"kind": "text", "uri": str(folder / "text")}]},
            "pretokenize": {"vocab_size": 300},
            "train": {
                "model": {"width": 96, "layers": 2, "heads": 6},
                "objectives": {},
                "packing": {"length": 64},
                "batch_rows": 2,
                "steps": 400,
                "optimizer": {"warmup_steps": 5},
                "workers": {"count": 1},
                "validation_rows": 2,
            },
            "evaluate": {"texts": 20, "gate": {"bits_per_byte": {"max": 9.0}}},
        },
        "forecast": {**FORECAST, **section},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return str(folder / "tiny.yaml")


def test_the_ladder_is_a_sweep_of_trainings_with_one_base(tmp_path):
    ladder = command.ladder_of(text_pipeline(tmp_path), ())
    found = ladder.sweep(ladder.rungs(0.003))
    assert found["name"] == "tiny-forecast" and found["tracking"]["register_as"] is None
    assert set(found["stages"]) == {"ingest", "pretokenize", "train"} and "forecast" not in found
    values = found["sweep"]["fields"]["stages.train"]
    assert [(v["model"]["width"], v["steps"]) for v in values] == [
        (w, s) for w in (32, 48, 64, 96) for s in (60, 120, 240)
    ]
    assert all(v["model"]["mup"] == {"width": 96, "layers": 2, "heads": 6} for v in values)
    assert all(v["optimizer"] == {"warmup_steps": 5, "lr": 0.003} and v["samples"]["count"] == 0 for v in values)
    with command._trials(ladder, ladder.rungs()) as trials:
        assert len(trials.known) == 12
        stages = {stage: {t.plan[stage].fingerprint for t in trials.known} for stage in ("pretokenize", "train")}
    assert len(stages["pretokenize"]) == 1 and len(stages["train"]) == 12
    assert not (tmp_path / "runs").exists()


def test_mixtures_and_objectives_are_each_tried_at_each_size(tmp_path):
    overrides = [f"storage={tmp_path}", "forecast={mixtures: [{text: 0.2}, {text: 0.6}], "]
    overrides[1] += "objectives: [{latent_diffusion: 1.0}, {next_code: 1.0}], steps: [100, 200], "
    overrides[1] += "goal: {metric: evaluate.image_class_agreement, direction: maximize}}"
    ladder = command.ladder_of("demo", overrides)
    assert [size["width"] for size in ladder.sizes] == [32, 64, 96]  # heads of 32 channels
    found = ladder.sweep(ladder.rungs())
    values = found["sweep"]["fields"]["stages.train"]
    assert len(values) == 2 * 2 * 3 * 2 and "evaluate" in found["stages"]
    assert {(*v["objectives"], v["packing"]["mixture"]["text"]) for v in values} == {
        (name, share) for name in ("latent_diffusion", "next_code") for share in (0.2, 0.6)
    }


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["forecast.sizes=[{width: 32}, {width: 48, heads: 3}, {width: 64}]"], "same fields in each"),
        (["forecast.objectives=[{}, {next_code: 1}]"], "goal: is missing"),
        (["forecast.steps=[60, 60]"], "has a value twice"),
        (["stages.train.init_from=/somewhere"], "no such|begin at random|no checkpoint|must be in the ids"),
        (["stages.train=null", "stages.evaluate=null"], "which the pipeline has not"),
        (["forecast.sizes=null", "stages.train.model.hidden=200"], "model.hidden is written"),
        (["forecast.goal={metric: nothing.x, direction: minimize}"], "nothing is no stage"),
    ],
    ids=str,
)
def test_what_is_no_ladder_is_told(tmp_path, overrides, told):
    with pytest.raises(InputError, match=told):
        ladder = command.ladder_of(text_pipeline(tmp_path), overrides)
        ladder.sweep(ladder.rungs())


def test_hours_are_read_with_their_units():
    found = [command.hours_of(text) for text in ("2h", "90m", "1.5", "45s", "2d", "30 min")]
    assert found == pytest.approx([2, 1.5, 1.5, 0.0125, 48, 0.5])
    for text in ("", "0h", "two", "-1h", "3 weeks"):
        with pytest.raises(InputError, match="--budget"):
            command.hours_of(text)


# ---- what came out ----

OVERHEAD, FACTOR, AROUND, BESIDE = 0.02, 1.7, 12.0, 5e8


def model_of(config) -> UnifiedConfig:
    return UnifiedConfig(vocab_size=300, **config.model.model_dump())


def trained(ladder: rungs.Ladder, law: Law = LAW, goal: Law | None = None, all_rungs=None) -> list[seen.Seen]:
    """What trainings would come to whose losses follow a law, and whose seconds and memory the planner's formulas."""
    found = []
    for rung in all_rungs or ladder.rungs():
        config = type(ladder.train).model_validate(rung.train(ladder.literals["stages"]["train"], ladder.base))
        model, tokens = model_of(config), rung.steps * 2 * 60.0
        n = num_parameters(model)
        found.append(
            seen.Seen(
                rung,
                config,
                model,
                {"text_loss": float(law(n, tokens)), **({seen.GOAL: float(goal(n, tokens))} if goal else {})},
                {"text_loss": tokens, **({seen.GOAL: tokens} if goal else {})},
                tokens,
                rung.steps * (OVERHEAD + FACTOR * step_cost(config, model)),
                AROUND,
                BESIDE + sum(worker_memory(config, model).values()),
            )
        )
    return found


def test_what_a_step_and_a_worker_take_is_found_again(tmp_path):
    found = trained(command.ladder_of(text_pipeline(tmp_path), ()))
    curves = seen.curves(found, found, 0, 0)
    assert curves.overhead == pytest.approx(OVERHEAD) and curves.factor == pytest.approx(FACTOR)
    assert curves.around == AROUND and curves.beside == pytest.approx(BESIDE)
    assert curves.tokens_of_step == pytest.approx(120) and curves.shares == {"text_loss": pytest.approx(1.0)}


def test_the_best_size_is_that_of_a_search_by_hand(tmp_path):
    ladder = command.ladder_of(text_pipeline(tmp_path), ())
    for hours in (0.2, 2.0):
        found = choosing.choose(ladder, trained(ladder), hours * 3600)
        totals = {}
        for width in range(32, 769, 16):
            config = ladder.rungs()[0].train(ladder.literals["stages"]["train"], ladder.base)
            config["model"] |= {"width": width, "heads": width // 16}
            settings = type(ladder.train).model_validate(config)
            model = model_of(settings)
            steps = (hours * 3600 - AROUND) // (OVERHEAD + FACTOR * step_cost(settings, model))
            totals[width] = float(LAW(num_parameters(model), steps * 120))
        best = min(totals.values())
        assert found.total == pytest.approx(best, rel=2e-3) and found.total >= best * (1 - 1e-6)
        assert found.seconds <= hours * 3600 and found.losses["text_loss"].value == pytest.approx(found.total, rel=1e-6)
        assert found.memory == pytest.approx(BESIDE + sum(worker_memory(*_settings(ladder, found)).values()))
    small = choosing.choose(ladder, trained(ladder), 0.05 * 3600)
    assert small.parameters < found.parameters


def _settings(ladder, choice):
    config = type(ladder.train).model_validate(choice.rung.train(ladder.literals["stages"]["train"], ladder.base))
    return config, model_of(config)


def test_the_largest_size_is_predicted_from_the_others(tmp_path):
    ladder = command.ladder_of(text_pipeline(tmp_path), ())
    found = {check.figure: check for check in choosing.checks(ladder, trained(ladder), "x")}
    assert set(found) == {"text_loss", "seconds of its steps", "bytes of a worker"}
    assert all(abs(check.off) < 1e-3 for check in found.values())
    came = [
        replace(one, losses={"text_loss": one.losses["text_loss"] * 1.05}, seconds=one.seconds * 0.8)
        if one.rung.size["width"] == 96
        else one
        for one in trained(ladder)
    ]
    found = {check.figure: check.off for check in choosing.checks(ladder, came, "x")}
    assert found["text_loss"] == pytest.approx(1 / 1.05 - 1, abs=1e-3)
    assert found["seconds of its steps"] == pytest.approx(0.25, abs=1e-3)
    three = [one for one in trained(ladder) if one.rung.size["width"] > 32]
    assert choosing.checks(ladder, three, "x") == []


def test_the_better_mixture_and_the_better_objective_are_chosen(tmp_path):
    goal = {"metric": "evaluate.bits_per_byte", "direction": "minimize"}
    section = {"mixtures": [{"text": 0.4}, {"text": 1.0}], "goal": goal}
    ladder = command.ladder_of(text_pipeline(tmp_path, **section), ())
    halves = []
    for one in trained(ladder, goal=LAW):  # half of the tokens are no text under the first
        share = 1.0 if one.rung.mixture == {"text": 1.0} else 0.5
        targets = {"text_loss": one.tokens * share, seen.GOAL: one.tokens}
        loss = {"text_loss": float(LAW(one.parameters, targets["text_loss"])), seen.GOAL: one.losses[seen.GOAL]}
        halves.append(replace(one, losses=loss, targets=targets))
    assert choosing.choose(ladder, halves, 3600).rung.mixture == {"text": 1.0}
    worse, better = (
        trained(ladder, goal=law, all_rungs=[replace(rung, objectives=own) for rung in ladder.rungs()[:12]])
        for own, law in ((None, LAW), ({}, replace(LAW, floor=1.2)))
    )
    report = page.made(ladder, [worse, better], 1.0, "CPU", 1.0, None)
    assert [kind for kind, _ in report.choices] == ["text alone", "as the config"]
    assert report.config["stages"]["train"]["objectives"] == {}


def test_a_budget_that_pays_for_nothing_is_told(tmp_path):
    ladder = command.ladder_of(text_pipeline(tmp_path), ())
    with pytest.raises(InputError, match="pay for no step"):
        choosing.choose(ladder, trained(ladder), AROUND)


def test_the_report_says_it_all_and_its_config_is_one(tmp_path):
    path = text_pipeline(tmp_path)
    ladder = command.ladder_of(path, ())
    found = page.made(ladder, [trained(ladder)], 0.5, "CPU", 2.0, None)
    lines = "\n".join(found.summary())
    assert "0.5 CPU-hours of training, 15 min on 2 CPUs" in lines and "check: text_loss of the largest size" in lines
    assert found.best.seconds <= 900
    (tmp_path / "best.yaml").write_text(yaml.safe_dump(dict(found.config)))
    best = load(str(tmp_path / "best.yaml"), files=True).stages.train
    assert best.model.width == found.best.rung.size["width"] and best.steps == found.best.rung.steps
    assert best.model.mup.width == 96 and best.samples.count == 16 and best.validate_every == 500
    html = found.html()
    assert "What the budget buys" in html and f"{found.best.parameters:,}" in html
    record = found.to_dict()
    assert len(record["ladder"]) == 12 and record["best"][0]["laws"]["text_loss"]["floor"] == pytest.approx(
        1.7, rel=1e-2
    )


def test_figures_are_read_from_what_a_training_left(tmp_path):
    ladder = command.ladder_of(text_pipeline(tmp_path), ())
    rung = ladder.rungs()[0]
    config = type(ladder.train).model_validate(rung.train(ladder.literals["stages"]["train"], ladder.base))
    folder = tmp_path / "made"
    (folder / "report").mkdir(parents=True)
    (folder / "model").mkdir()
    rows = [
        '{"step": 20, "units": 2000.0, "loss": 4.0, "text_targets": 99.0, "tokens_per_second": 500.0}',
        '{"step": 50, "units": 5000.0, "loss": 3.0, "text_targets": 90.0, "tokens_per_second": 1000.0}',
        '{"step": 60, "units": 6000.0, "loss": 3.0, "text_targets": 80.0, "tokens_per_second": 2000.0}',
        '{"step": 60, "validation_text_loss": 3.5}',
    ]
    (folder / "report" / "history.jsonl").write_text("\n".join(rows))
    shape = '{"unified": {"vocab_size": 300, "width": 32, "layers": 2, "heads": 2, "mup": {"width": 96, "heads": 6}}}'
    (folder / "model" / "config.json").write_text(shape)
    metrics = {"validation_text_loss": 3.5, "units": 6000.0, "peak_memory_mebibytes": 100.0}
    made = Artifact("train", "f" * 64, str(folder), {"metrics": metrics, "times": {"seconds": 20.0}})
    goal = GoalConfig(metric="evaluate.accuracy", direction="maximize")
    judged = Artifact("evaluate", "e" * 64, str(folder), {"metrics": {"accuracy": 0.75}})
    found = seen.read(rung, config, made, judged, goal)
    assert found.losses == {"text_loss": 3.5, seen.GOAL: 0.25}
    assert found.targets == {"text_loss": 20 * 99 + 30 * 90 + 10 * 80, seen.GOAL: 6000}
    assert found.seconds == pytest.approx(4 + 3 + 0.5) and found.around == pytest.approx(12.5)
    assert found.memory == 100 * 2**20 and found.step_seconds == pytest.approx(7.5 / 60)


def test_the_command_wants_a_budget(tmp_path, monkeypatch, capsys):
    for arguments, told in (([], "--budget: is missing"), (["--budget", "soon"], "expected hours")):
        monkeypatch.setattr("sys.argv", ["omniloom", "forecast", text_pipeline(tmp_path), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.slow
def test_a_ladder_runs_once_and_its_config_is_written(tmp_path, monkeypatch):
    sizes = [{"width": w, "heads": w // 8} for w in (16, 24, 32)]
    path = text_pipeline(tmp_path, sizes=sizes, steps=[6, 12], rates=[1e-3, 4e-3])
    found = command.forecast(path, ["cluster.num_cpus=2"], 0.01)
    assert len(found.seen) == 6 and found.lr in (1e-3, 4e-3) and all(one.memory > 1e8 for one in found.seen)
    assert all(one.seconds > 0 and math.isfinite(one.losses["text_loss"]) for one in found.seen)
    assert load(f"{found.folder}/best.yaml", files=True).stages.train.steps == found.best.rung.steps
    made = len(list((tmp_path / "runs" / "artifacts" / "train").iterdir()))
    again = command.forecast(path, ["cluster.num_cpus=2"], 0.02)
    assert len(list((tmp_path / "runs" / "artifacts" / "train").iterdir())) == made
    assert [one.losses for one in again.seen] == [one.losses for one in found.seen]
