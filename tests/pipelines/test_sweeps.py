"""Sweeps: which trials there are, what they share, what is wrong told before anything runs, and what came out."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from omniloom.infra.errors import InputError
from omniloom.pipelines import cli, plan
from omniloom.pipelines.config import load
from omniloom.pipelines.sweeps import folder, foretelling, goals, results, tables
from omniloom.pipelines.sweeps.config import GoalConfig, PruneConfig, SweepConfig
from omniloom.pipelines.sweeps.pruning import Pruner
from omniloom.pipelines.sweeps.results import Result, Results
from omniloom.pipelines.sweeps.room import Room
from omniloom.pipelines.sweeps.spaces import extremes, listed
from omniloom.pipelines.sweeps.trials import Trials, sharing, short_names, shown
from omniloom.stages.evaluate import items

GOAL = {"metric": "evaluate.image_class_agreement", "direction": "maximize"}
LR = "stages.train.optimizer.lr"


def sweep(**settings) -> SweepConfig:
    return SweepConfig.model_validate({"goal": GOAL, **settings})


# ---- the values ----

names = st.sampled_from([LR, "seed", "stages.train.batch_rows", "stages.train.objectives", "data"])
lists = st.lists(st.integers(-9, 9), min_size=1, max_size=4, unique=True)


@given(st.dictionaries(names, lists, min_size=1, max_size=4))
def test_a_grid_has_each_combination_once(fields):
    found = [tuple(values[path] for path in fields) for values in listed(sweep(fields=fields))]
    assert found == list(itertools.product(*fields.values())) and len(set(found)) == len(found)


ranges = st.tuples(st.floats(1e-6, 1e3), st.floats(1.001, 1e4)).map(lambda pair: [pair[0], pair[0] * pair[1]])
spaces = st.one_of(
    ranges.map(lambda ends: {"uniform": ends}),
    ranges.map(lambda ends: {"log_uniform": ends}),
    st.tuples(st.integers(-50, 50), st.integers(20, 99)).map(lambda p: {"integers": [p[0], p[0] + p[1]]}),
)


@given(st.dictionaries(names, spaces, min_size=1, max_size=3), st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_random_trials_follow_from_the_seed_and_stay_when_more_are_asked_for(fields, seed, count):
    settings = {"method": "random", "fields": fields, "seed": seed}
    found = listed(sweep(**settings, trials=count))
    assert found == listed(sweep(**settings, trials=count)) == listed(sweep(**settings, trials=count + 8))[:count]
    assert len(found) == count and all(a != b for a, b in itertools.combinations(found, 2))
    for values, (path, space) in itertools.product(found, fields.items()):
        ((kind, (low, high)),) = space.items()
        assert low <= values[path] <= high and (kind != "integers" or isinstance(values[path], int))
    if len(fields) > 1:  # a field's values are its own, whatever others there are
        path = list(fields)[-1]
        alone = {**settings, "fields": {path: fields[path]}}
        first = listed(sweep(**alone, trials=1))[0]
        assert first[path] == found[0][path]


def test_numbers_are_spread_as_their_space_says():
    fields = {LR: {"log_uniform": [1e-5, 1e-1]}, "seed": {"uniform": [0.0, 8.0]}, "data": {"integers": [1, 4]}}
    found = listed(sweep(method="random", trials=4000, fields=fields))
    decades = np.histogram([math.log10(values[LR]) for values in found], bins=4, range=(-5, -1))[0]
    eighths = np.histogram([values["seed"] for values in found], bins=8, range=(0, 8))[0]
    wholes = np.bincount([values["data"] for values in found], minlength=5)[1:]
    for counts in (decades, eighths, wholes):  # five deviations of a binomial
        share = 4000 / len(counts)
        assert np.all(abs(counts - share) < 5 * math.sqrt(share * (1 - share / 4000))), counts
    assert listed(sweep(method="random", trials=4, fields=fields, seed=1)) != found[:4]


def test_a_random_sweep_of_choices_never_repeats_itself():
    found = listed(sweep(method="random", trials=6, fields={LR: [1, 2, 3], "seed": {"choice": [{"a": 1}, {"a": 2}]}}))
    assert sorted((v[LR], v["seed"]["a"]) for v in found) == [(a, b) for a in (1, 2, 3) for b in (1, 2)]


def test_extremes_have_each_choice_and_both_ends():
    fields = {LR: {"log_uniform": [1e-4, 1e-2]}, "seed": {"integers": [3, 9]}, "data": ["a", "b", "c"]}
    found = extremes(sweep(method="random", trials=2, fields=fields))
    assert [set(map(str, (v[path] for v in found))) for path in fields] == [
        {"0.0001", "0.01"}, {"3", "9"}, {"a", "b", "c"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"fields": {LR: 3}}, f"fields.{LR}: expected a list of values, or a range"),
        ({"fields": {LR: []}}, f"fields.{LR}.choice: list should have at least 1"),
        ({"fields": {LR: [1, 1]}}, f"fields.{LR}: has a value twice"),
        ({"fields": {LR: {"uniform": [2, 1]}}}, "the lower first, got 2.0 and 1.0"),
        ({"fields": {LR: {"log_uniform": [0, 1]}}, "method": "random", "trials": 2}, "above 0, got 0"),
        ({"fields": {LR: {"uniform": [1, 2], "integers": [1, 2]}}}, "got uniform and integers"),
        ({"fields": {LR: {"uniform": [1, 2]}}}, f"a grid takes lists of values, and {LR} is of a range"),
        ({"fields": {LR: [1, 2], "seed": [1]}, "method": "zip"}, f"lists of one length; seed has 1, {LR} has 2"),
        ({"fields": {LR: {"uniform": [1, 2]}}, "method": "random"}, "trials: is missing"),
        ({"fields": {LR: [1, 2]}, "method": "random", "trials": 3}, "trials: 3, of 2 different ones"),
        ({"fields": {LR: [1, 2]}, "trials": 2}, "trials: is of random and optuna"),
        ({"fields": {"name": ["a"]}}, "fields: expected paths of fields in stages or pins, data or seed, got 'name'"),
        ({"fields": {"stages.train": [{}], LR: [1]}}, f"{LR} lies within stages.train"),
        ({"fields": {f"stages.s{n}": list(range(30)) for n in range(3)}}, "27,000 combinations"),
        (
            {"fields": {LR: [1]}, "prune": {"metric": "train.x", "rule": "median", "factor": 3}},
            "factor: is of rule asha",
        ),
    ],
)
def test_a_wrong_sweep_names_its_field(tmp_path, settings, told):
    file = tmp_path / "wrong.yaml"
    known = yaml.safe_load(cli_preset())
    file.write_text(yaml.safe_dump({**known, "sweep": {"goal": GOAL, **settings}}))
    with pytest.raises(InputError) as error:
        load(str(file))
    assert "sweep." in str(error.value) and told in str(error.value) and "line " in str(error.value)


def cli_preset() -> str:
    from omniloom.pipelines.config import find

    return find("demo").read_text()


# ---- the trials ----


@pytest.fixture
def swept(workspace, tmp_path):
    """Makes the trials of the demo with a sweep of these fields, in a file of its own."""

    def make(fields: dict, *overrides: str, **settings) -> Trials:
        file = tmp_path / "swept.yaml"
        section = {"sweep": {"fields": fields, "goal": GOAL, **settings}}
        file.write_text(cli_preset() + yaml.safe_dump(section, sort_keys=False))
        given = workspace.overrides(*overrides)
        return Trials(str(file), given, load(str(file), given))

    return make


def test_trials_share_what_does_not_depend_on_their_values(swept, monkeypatch):
    looked = []
    listing = plan._listing
    monkeypatch.setattr(plan, "_listing", lambda *a: looked.append(a[0].name) or listing(*a))
    found = swept({LR: [1e-3, 1e-4], "stages.tokenizer_image.steps": [5, 6]})
    assert looked.count("ingest") == 1  # sources are listed once for all
    users = {made: [trial.number for trial in of] for made, of in sharing(found.known).items()}
    by_stage = {stage: sorted(of for (name, _), of in users.items() if name == stage) for stage, _ in users}
    assert by_stage["ingest"] == [[1, 2, 3, 4]]
    assert by_stage["tokenizer_image"] == by_stage["pretokenize"] == [[1, 3], [2, 4]]
    assert by_stage["train"] == by_stage["evaluate"] == [[1], [2], [3], [4]]
    alone = swept({LR: [1e-4]}, "stages.tokenizer_image.steps=6").known[0]
    assert alone.plan.artifacts == found.known[3].plan.artifacts  # as if it had been run by itself


def test_a_trial_is_called_by_what_it_changes(swept):
    found = swept({LR: [2e-3, 3e-4], "stages.train.objectives": [{"next_code": 1.0}]})
    assert [trial.title for trial in found.known] == [
        "lr 0.002, objectives {latent_diffusion: 1.0} -> {next_code: 1.0}",
        "lr 0.002 -> 0.0003, objectives {latent_diffusion: 1.0} -> {next_code: 1.0}",
    ]
    assert short_names(["stages.a.lr", "stages.b.lr", "seed"]) == {
        "stages.a.lr": "a.lr", "stages.b.lr": "b.lr", "seed": "seed"
    }  # fmt: skip
    assert shown(None) == "null" and shown({"a": [1, 2]}) == "{a: [1, 2]}" and len(shown("x" * 99)) == 60


def test_a_value_stands_in_place_of_all_that_is_there_and_what_refers_to_it_follows(swept):
    found = swept({"stages.train.model": [{"width": 64}], "seed": [7, 8]})
    first, second = (trial.config for trial in found.known)
    assert first.stages.train.model.width == 64 and first.stages.train.model.layers != 4  # of the demo's own
    assert [c.stages.train.seed for c in (first, second)] == [c.stages.tokenizer_image.seed for c in (first, second)]
    assert (first.stages.train.seed, second.stages.train.seed) == (7, 8)
    assert first.sweep is None and found.base.sweep is not None


def test_a_whole_stage_may_come_and_go(swept):
    found = swept({"stages.tokenizer_joint": [None, {"data": {"sizes": [32]}, "steps": 3}]})
    assert [len(trial.plan.stages) for trial in found.known] == [5, 6]


STEPS = ("stages.train.steps=600", "stages.train.validate_every=300")


@pytest.mark.parametrize(
    ("fields", "overrides", "told"),
    [
        ({LR: [1e-3, -1]}, (), [f"{LR}: input should be greater than 0", "(trial 2: ", f"{LR} = -1"]),
        ({"stages.train.optimiser.lr": [1]}, (), ["stages.train.optimiser: unknown key", "did you mean 'optimizer'"]),
        ({"stages.train.objectives": [{"pixel_diffusion": 1}]}, (), ["train.objectives: ", "pixel_patch", "trial 1"]),
        ({"stages.train.validate_every": [3, 4]}, (), ["validate_every: changes nothing that comes out: 3 and 4"]),
        ({"stages.ingest.sources[9].uri": ["x"]}, (), ["cannot be set", "trial 1"]),
        ({LR: [1e-3]}, (f"{LR}=1",), [f"{LR}: has no effect, as the sweep sets {LR}"]),
        ({LR: [1e-3]}, ("sweep.goal.metric=evaluate.image_class",), ["sweep.goal.metric", "image_class_agreement"]),
        ({LR: [1e-3]}, ("sweep.goal.direction=minimize",), ["sweep.goal.direction", "higher is better"]),
        ({LR: [1e-3]}, ("sweep.goal.metric=eval.x",), ["sweep.goal.metric: eval is no stage", "'evaluate'"]),
        ({LR: [1e-3]}, ("sweep.prune={metric: train.a, after: 301}", *STEPS), ["sweep.prune.after", "after step 600"]),
        ({LR: [1e-3]}, ("sweep.prune={metric: evaluate.a}",), ["sweep.prune.metric: evaluate is no training"]),
        ({LR: [1e-3]}, ("cluster.num_cpus=1",), ["stages.tokenizer_image.workers", "trial 1"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_of_the_trial_and_the_field(swept, fields, overrides, told):
    with pytest.raises(InputError) as error:
        swept(fields, *overrides)
    assert all(words in str(error.value) for words in told), error.value


@pytest.mark.parametrize(
    ("name", "told"),
    [("evaluate", "does not come before evaluate"), ("nothing.x", "nothing is no stage of this pipeline")],
)
def test_what_foretells_comes_before_the_goal(swept, name, told):
    with pytest.raises(InputError, match=told) as error:
        swept({LR: [1e-3, 2e-3]}, foretell=[name])
    assert "sweep.foretell.0" in str(error.value)


def test_an_error_has_the_line_of_the_sweeps_field_and_is_told_once(swept):
    with pytest.raises(InputError) as error:
        swept({"seed": [1, 2], LR: [-1]})
    lines = cli_preset().count("\n") + yaml.safe_dump(
        {"sweep": {"fields": {"seed": [1, 2], LR: [-1]}}}, sort_keys=False
    ).split(LR)[0].count("\n")
    assert error.value.each()[0].line == lines + 1
    assert str(error.value).count("greater than 0") == 1 and "2 of the 2 trials are wrong" in str(error.value)


def test_overrides_reach_the_trials_and_the_sweep(swept):
    found = swept({LR: [1e-3]}, "stages.train.steps=9", f"sweep.fields.{LR}=[0.5, 0.25]", "sweep.fields.seed=[4]")
    assert [(t.config.stages.train.steps, t.config.stages.train.optimizer.lr) for t in found.known] == [
        (9, 0.5),
        (9, 0.25),
    ]
    assert {trial.config.seed for trial in found.known} == {4}
    replaced = swept(
        {LR: [1e-3]}, f"sweep.fields.{LR}={{log_uniform: [1e-4, 1e-3]}}", "sweep.method=random", "sweep.trials=3"
    )
    assert replaced.count == 3 and list(replaced.sweep.fields) == [LR]


# ---- as commands ----


def test_the_plan_lists_trials_and_what_they_share(workspace, tmp_path, capsys, monkeypatch):
    file = tmp_path / "swept.yaml"
    fields = {"stages.train.objectives": [{"latent_diffusion": 1.0}, {"next_code": 1.0}]}
    file.write_text(cli_preset() + yaml.safe_dump({"sweep": {"fields": fields, "goal": GOAL}}))
    workspace.publish("ingest", "tokenizer_image")
    monkeypatch.setattr("sys.argv", ["omniloom", "plan", str(file), *workspace.overrides()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "sweep of 2 trials" in out and "{next_code: 1.0}" in out and out.count("train, evaluate") == 2
    assert [line.split(":")[1].strip() for line in out.splitlines() if line.endswith("for all trials")] == [
        "cached, for all trials", "cached, for all trials", "run once, for all trials", "run once, for all trials"
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["omniloom", "plan", "--json", str(file), *workspace.overrides()])
    with pytest.raises(SystemExit):
        cli.main()
    told = json.loads(capsys.readouterr().out)
    made = [row["stage"] for row in told["to_make"]]
    assert made == ["tokenizer_joint", "pretokenize", "train", "evaluate", "train", "evaluate"]
    assert [row["trials"] for row in told["shared"]] == [[1, 2]] * 4 and len(told["trials"]) == 2
    for option in (["--force", "train"], ["--only", "train"], ["--from", "train"], ["--until", "train"]):
        monkeypatch.setattr("sys.argv", ["omniloom", "run", *option, str(file), *workspace.overrides()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2 and (option[0] in capsys.readouterr().err)


# ---- pruning ----


def heard(pruner: Pruner, curves: dict[int, list[float]], every: int = 4) -> list[int]:
    """The trials that are pruned, each heard to its end or until it is."""
    pruned = []
    for number, curve in curves.items():
        for count in range(1, len(curve) + 1):
            last = count == len(curve)
            rows = [(every * step, {"validation_loss": value}) for step, value in enumerate(curve[:count], 1)]
            if pruner.hear(number, rows, last=last):
                pruned.append(number)
                break
    return pruned


def prune(**settings) -> PruneConfig:
    return PruneConfig.model_validate({"metric": "train.validation_loss", "after": 4, **settings})


def test_asha_prunes_what_is_not_among_the_best_part_at_a_rung():
    curves = {1: [5.0, 4.0, 3.0, 2.0], 2: [9.0, 8.0, 7.0, 6.0], 3: [4.0, 3.0, 2.0, 1.0], 4: [4.4, 9.0, 9.0, 9.0]}
    # Rungs at 4 and 8 by factor 2: at the first, trial 2 is behind the median of {5}; trial 4 behind that of {5, 9, 4}
    # only at the second.
    pruner = Pruner(prune(factor=2), 16)
    assert heard(pruner, curves) == [2, 4]
    assert "validation_loss 9 after step 4" in (pruner.hear(2, []) or "")


def test_the_last_validation_prunes_nothing_and_a_direction_counts():
    assert heard(Pruner(prune(factor=2), 8), {1: [1.0], 2: [9.0]}) == []
    assert heard(Pruner(prune(factor=2, direction="maximize"), 8), {1: [1.0, 1.0], 2: [9.0, 9.0], 3: [0.5, 9.0]}) == [3]


def test_the_median_rule_waits_for_enough_trials():
    curves = {1: [4.0, 4.0], 2: [2.0, 2.0], 3: [3.5, 3.5], 4: [2.5, 2.5]}
    assert heard(Pruner(prune(rule="median", least_trials=2), 8), curves) == [3]
    assert heard(Pruner(prune(rule="median", least_trials=3), 8), curves) == []


def test_a_figure_that_is_not_validated_is_told():
    with pytest.raises(InputError, match="sweep.prune.metric: is not among what is validated: validation_other"):
        Pruner(prune(), 8).hear(1, [(4, {"validation_other": 1.0})])


# ---- search ----


@pytest.mark.skipif(not importlib.util.find_spec("optuna"), reason="needs omniloom[sweep]")
def test_optuna_through_ray_tune_repeats_itself_and_gets_nearer():
    from omniloom.pipelines.sweeps.search import Optuna

    fields = {LR: {"log_uniform": [1e-5, 1e-1]}, "seed": [{"a": 1}, {"a": 2}], "data": {"integers": [1, 9]}}
    config = sweep(method="optuna", trials=40, fields=fields, seed=3)

    def search() -> list[dict]:
        found, optuna = [], Optuna(config)
        for number in range(1, 41):
            values = optuna.ask(number)
            off = abs(math.log10(values[LR]) + 3) + abs(values["data"] - 4) + values["seed"]["a"]
            optuna.tell(number, None if number == 5 else -off)  # one failed
            found.append(dict(values))
        return found

    found = search()
    assert found == search() and search() != [dict(v) for v in listed(config.model_copy(update={"method": "random"}))]
    off = [abs(math.log10(v[LR]) + 3) + abs(v["data"] - 4) + v["seed"]["a"] for v in found]
    assert np.mean(off[-10:]) < np.mean(off[:10]) - 1 and all(1e-5 <= v[LR] <= 1e-1 for v in found)


def test_optuna_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install omniloom\[sweep\]"):
        sweep(method="optuna", trials=3, fields={LR: [1, 2]})


# ---- what came out ----


def rows(values: dict[int, float | None], **status: str) -> list[Result]:
    return [
        Result(
            number,
            {LR: number / 100},
            f"lr {number / 100}",
            status.get(f"t{number}", "finished"),
            value if value is None else goals.Figure(value, value - 0.1, value + 0.1),
            artifacts={"evaluate": str(number)},
            validations=[(4, {"validation_loss": 2.0}), (8, {"validation_loss": 1.0})],
            why="it fell" if f"t{number}" in status else "",
        )
        for number, value in values.items()
    ]


def goal(direction: str = "maximize") -> GoalConfig:
    return GoalConfig(metric="evaluate.image_class_agreement", direction=direction)


def test_the_best_is_by_the_goal_and_ties_go_to_the_first():
    made = rows({1: 0.5, 2: 0.9, 3: 0.9, 4: None, 5: 0.1}, t4="failed")
    found = Results("p", "id", goal(), made)
    assert [row.number for row in found.ranked] == [2, 3, 1, 5] and found.best is made[1]
    assert [row.number for row in Results("p", "id", goal("minimize"), made).ranked] == [5, 1, 2, 3]
    assert found.second is made[2] and [row.number for row in found.failed] == [4]
    made[2].artifacts = made[1].artifacts  # the same model by another way is no second
    assert found.second is made[0]
    assert [line.split(",")[0] for line in found.to_csv().splitlines()] == ["trial", "1", "2", "3", "4", "5"]
    assert found.to_csv().splitlines()[4] == "4,0.04,failed,,,,0.0,it fell"
    assert json.loads(json.dumps(found.to_dict()))["best"] == 2


def test_a_zip_takes_the_values_of_all_fields_together():
    both = sweep(method="zip", fields={LR: [1, 1, 2], "seed": [3, 4, 4]})
    assert listed(both) == [{LR: 1, "seed": 3}, {LR: 1, "seed": 4}, {LR: 2, "seed": 4}]


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=12))
def test_the_rank_correlation_is_scipys(pairs):
    a, b = zip(*pairs)
    expected = scipy.stats.spearmanr(a, b).statistic if len(set(a)) > 1 and len(set(b)) > 1 else 0.0
    assert foretelling.spearman(a, b) == pytest.approx(expected, abs=1e-9)


def made_trials(figures: dict[int, dict[str, float]]) -> dict[int, SimpleNamespace]:
    """Each trial's `latents` has these figures and took 10 s; its `evaluate` took 90 s."""

    class Plan(dict):
        config = SimpleNamespace(graph=SimpleNamespace(ancestors=lambda stage: set()))

    def artifact(seconds: float, metrics: dict) -> SimpleNamespace:
        return SimpleNamespace(artifact=SimpleNamespace(metrics=metrics, manifest={"times": {"seconds": seconds}}))

    return {
        number: SimpleNamespace(plan=Plan(latents=artifact(10.0, held), evaluate=artifact(90.0, {})))
        for number, held in figures.items()
    }


def test_the_figure_that_went_with_the_goal_is_found_and_what_it_would_have_spared():
    judged = rows({1: 0.5, 2: 0.9, 3: 0.88, 4: 0.1, 5: 0.3})
    for row in judged:
        row.artifacts = {"latents": f"l{row.number}", "evaluate": f"e{row.number}"}
    against = {1: 3.0, 2: 1.5, 3: 1.0, 4: 9.0, 5: 5.0}
    noise = {1: 1.0, 2: 1.0, 3: 2.0, 4: 1.0, 5: 2.0}
    trials = made_trials({n: {"ifid": against[n], "noise": noise[n], "same": 1.0} for n in against})
    found = foretelling.foretold(
        Results("p", "id", goal(), judged), trials, sweep(fields={LR: [1]}, goal=goal(), foretell=["latents"])
    )
    assert [one.metric for one in found] == ["latents.ifid", "latents.noise"]
    best = found[0]
    assert best.rank == pytest.approx(scipy.stats.spearmanr(list(against.values()), [0.5, 0.9, 0.88, 0.1, 0.3])[0])
    assert best.pick == 3 and best.behind == pytest.approx(0.02 / 0.9)  # the least iFID, as it fell with the goal
    assert best.time == pytest.approx((5 * 10 + 90) / 500)
    assert best.low <= best.rank <= best.high
    told = foretelling.lines(found, "evaluate.x")[0]
    assert "latents.ifid: rank correlation -0.90" in told and "picks trial 3, 2.2% behind the best, in 28%" in told
    few = Results("p", "id", goal(), judged[:3])
    assert foretelling.foretold(few, trials, sweep(fields={LR: [1]}, goal=goal(), foretell=["latents"])) == []


def foretold(judged: dict[int, float], direction: str, figures: dict[str, list], **status: str) -> list:
    """What figures, each with a value a trial, foretell of the goal's values."""
    made = rows(judged, **status)
    for row in made:
        row.artifacts = {"latents": f"l{row.number}", "evaluate": f"e{row.number}"}
    held = {number: {name: column[i] for name, column in figures.items()} for i, number in enumerate(judged)}
    settings = sweep(fields={LR: [1]}, goal=goal(direction), foretell=["latents"])
    return foretelling.foretold(Results("p", "id", goal(direction), made), made_trials(held), settings)


def test_foretold_of_a_goal_that_is_to_be_small():
    """The pick is the least of a figure that rises with the goal, and the most of one that falls; ends of intervals,
    truths and what a failed trial has are no figures."""
    judged = {1: 5.0, 2: 2.0, 3: 2.5, 4: 9.0, 5: 0.1}
    figures = {
        "rises": [4.0, 2.0, 1.0, 5.0, 0.0],
        "falls": [1.0, 4.0, 5.0, 0.0, 9.0],
        "rises_low": [4.0, 2.0, 1.0, 5.0, 0.0],
        "truth": [True, False, False, True, True],
    }
    found = {one.metric: one for one in foretold(judged, "minimize", figures, t5="failed")}
    assert set(found) == {"latents.rises", "latents.falls"}
    for one in found.values():
        assert one.trials == 4 and one.pick == 3 and one.behind == pytest.approx(0.25)
    assert found["latents.rises"].rank == -found["latents.falls"].rank > 0
    by_strength = foretold(judged, "minimize", {"weak": [1.0, 2.0, 4.0, 3.0, 0.0], "falls": figures["falls"]})
    assert [one.metric for one in by_strength] == ["latents.falls", "latents.weak"]
    (to_nought,) = foretold({1: 0.0, 2: 0.5, 3: 1.0, 4: 2.0}, "minimize", {"a": [2.0, 1.0, 3.0, 4.0]})
    assert to_nought.pick == 2 and to_nought.behind == 0.5  # of nothing there is no share


def test_the_interval_of_a_rank_correlation_is_about_fishers():
    """Of many pairs the percentiles are near tanh(atanh(r) -+ 1.96 s), s^2 = (1 + r^2 / 2) / (n - 3) (Bonett and Wright
    2000)."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal(300)
    y = 0.7 * x + 0.7 * rng.standard_normal(300)
    rank = scipy.stats.spearmanr(x, y).statistic
    half = 1.96 * np.sqrt((1 + rank**2 / 2) / 297)
    wanted = np.tanh(np.arctanh(rank) + np.array([-half, half]))
    assert foretelling._interval(x, y) == pytest.approx(tuple(wanted), abs=0.025)


def test_chance_among_one_figure_is_the_median_of_its_own_law():
    """Of four trials all 24 orders are equally likely: |rank| is 1 or 0.8 or less in known shares."""
    laws = [abs(scipy.stats.spearmanr(order, range(4)).statistic) for order in itertools.permutations(range(4))]
    assert foretelling.by_chance(1, 4) == pytest.approx(np.median(laws), abs=0.21)
    assert foretelling.by_chance(60, 4) == pytest.approx(1.0)  # of 60 one is nearly always in order, or in reverse
    assert foretelling.by_chance(6, 4) == pytest.approx(_median_of_largest(laws, 6), abs=0.21)


def _median_of_largest(law: list[float], count: int) -> float:
    """The median of the largest of so many draws: the least value whose share of the law, to that power, is a half."""
    values = sorted(set(law))
    return next(v for v in values if (np.mean([one <= v + 1e-9 for one in law])) ** count >= 0.5)


def test_of_more_figures_without_meaning_the_best_correlates_better_by_chance():
    assert foretelling.by_chance(1, 8) < foretelling.by_chance(20, 8) < 1


def test_the_best_is_held_against_the_second_item_by_item(tmp_path):
    rng = np.random.default_rng(0)
    ids = tuple(f"item-{number:03d}" for number in range(200))

    def trial(number: int, share: float) -> SimpleNamespace:
        uri = str(tmp_path / str(number))
        values = (rng.random(200) < share).astype(float)
        items.write(uri, {"image_class_agreement": items.values_of(ids, values)})
        stage = SimpleNamespace(artifact=SimpleNamespace(uri=uri), stage=SimpleNamespace(makes="evaluation"))
        return SimpleNamespace(plan={"evaluate": stage})

    trials = {1: trial(1, 0.95), 2: trial(2, 0.5), 3: trial(3, 0.94)}
    clear = Results("p", "id", goal(), rows({1: 0.95, 2: 0.5}))
    results.test(clear, trials)
    assert clear.test is not None and clear.test.decision == "better" and clear.test.items == 200
    assert clear.verdict.startswith("trial 1 is better than trial 2 (+0.")
    near = Results("p", "id", goal(), rows({1: 0.95, 3: 0.94}))
    results.test(near, trials)
    assert near.verdict.startswith("whether trial 1 is better than trial 3 is undecided")
    other = Results(
        "p", "id", GoalConfig(metric="evaluate.codebook_usage", direction="maximize"), rows({1: 1.0, 2: 0.5})
    )
    results.test(other, trials)
    assert other.test is None and "no mean over items" in other.verdict


def test_the_table_is_whole_at_80_columns():
    made = rows({1: 0.5, 2: 0.9, 4: None}, t4="pruned")
    for row in made:
        row.values = {"stages.train.objectives": {"latent_diffusion": 1.0}, LR: 0.0003}
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    console.print(tables.results_table(Results("p", "id", goal(), made)))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80 and lines[0].startswith("evaluate.image_class_agreement, higher is better")
    assert [line.split()[0] for line in lines[2:] if line[:1].isdigit()] == ["2", "1", "4"]  # the best first
    text = " ".join(lines)
    assert all(whole in text for whole in ("0.9", "0.8 to 1", "finished", "pruned", "0.0003"))


def test_the_page_has_the_table_the_figure_and_a_curve_of_every_trial(swept):
    from omniloom.pipelines.sweeps.page import render

    trials = swept({LR: [0.01, 0.02, 0.5]})
    made = rows({1: 0.5, 2: 0.9, 3: 0.7})
    page = render(Results("demo", "id", goal(), made), trials, {trial.number: trial for trial in trials.known})
    assert all(f"{number}: lr {number / 100}" in page for number in (1, 2, 3))  # of the validations
    assert "Over trials" in page and "Over lr" in page and "validation loss" in page and "best so far" in page
    assert "Best is trial 2: lr 0.02." in page and page.count("<svg") >= 3


def test_a_sweeps_folder_follows_from_what_it_compares(swept, workspace):
    first = swept({LR: [1e-3, 1e-4]}).base
    same = swept({LR: [1e-3, 1e-4]}, "sweep.concurrent=3", "stages.train.validate_every=20").base
    assert folder.identity(first) == folder.identity(same)  # where and how it runs does not count
    others = [swept({LR: [1e-3]}).base, swept({LR: [1e-3, 1e-4]}, "stages.train.steps=3").base]
    assert len({folder.identity(config) for config in (first, *others)}) == 3
    place = folder.Folder(first)
    place.write(Results("demo", place.id, goal(), rows({1: 0.5})))
    assert list(folder.used(str(workspace.storage))) == [(("evaluate", "1"), place.uri)]
    assert place.known()[0]["values"] == {LR: 0.01}


def test_another_trial_starts_where_there_is_room_for_what_each_takes_most(swept):
    from omniloom.infra.nodes import Node

    first, second = swept({LR: [1e-3, 1e-4]}).known  # two workers of one CPU each
    assert Room([Node(1.0, 0.0)]).takes(first, []) and Room([Node(4.0, 0.0)]).takes(second, [first])
    assert not Room([Node(3.0, 0.0)]).takes(second, [first])


def test_a_finished_sweep_starts_nothing_and_tells_what_came_out(workspace, tmp_path, capsys, monkeypatch):
    """All is cached, so that the whole command goes without Ray: table, files, and what the pipeline used last."""
    file, rates = tmp_path / "swept.yaml", [1e-3, 1e-4]
    section = {"fields": {LR: rates}, "goal": {"metric": "train.records", "direction": "maximize"}}
    file.write_text(cli_preset() + yaml.safe_dump({"sweep": section}))
    workspace.publish(overrides=(f"{LR}={rates[0]}",))
    workspace.publish("train", "evaluate", overrides=(f"{LR}={rates[1]}",), content="other")
    monkeypatch.setattr("sys.argv", ["omniloom", "run", str(file), *workspace.overrides()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err + out
    assert [line.split()[:4] for line in out.splitlines() if line[:1] in "12"] == [
        ["1", "0.001", "2", "-"], ["2", "0.0001", "2", "-"]
    ]  # fmt: skip
    assert "best:   trial 1: lr 0.002 -> 0.001" in out and "train.records is no figure of an evaluation" in out
    place = folder.Folder(load(str(file), workspace.overrides()))
    assert [row["status"] for row in place.known()] == ["finished"] * 2
    assert [row["executed"] for row in place.known()] == [[], []]
    last = workspace.plan().store.last_used("demo", "train")
    assert last is not None and last.fingerprint == place.known()[0]["artifacts"]["train"]
    kept = {made for made, _ in folder.used(str(workspace.storage))}
    assert len([stage for stage, _ in kept if stage == "train"]) == 2 and len(kept) == 8


def test_commands_about_stages_name_the_trials_that_have_them(workspace, tmp_path, omniloom):
    """Two of three trials have a tokenizer in common; the first of them is made, and another one's training."""
    file, steps = tmp_path / "swept.yaml", "stages.tokenizer_joint.steps"
    section = {"fields": {steps: [5, 6], LR: [1e-3, 1e-4]}, "goal": GOAL}
    file.write_text(cli_preset() + yaml.safe_dump({"sweep": section}))
    workspace.publish(overrides=(f"{steps}=5", f"{LR}=1e-3"))
    own = workspace.overrides()
    code, out, _ = omniloom("status", "--json", str(file), *own)
    told = json.loads(out)
    labels = ["ingest", "tokenizer_image", "1,2/tokenizer_joint", "1,2/pretokenize", "1/train", "1/evaluate"]
    made = [row["name"] for row in told["stages"] if row["status"] == "cached"]
    assert code == 0 and made == labels and len(told["stages"]) == 2 + 2 * 2 + 2 * 4
    assert [(row["trial"], row["status"]) for row in told["trials"]] == [(n, "not run") for n in (1, 2, 3, 4)]
    assert told["trials"][3]["title"].endswith("lr 0.002 -> 0.0001")
    code, out, _ = omniloom("status", str(file), *own)
    assert code == 0 and "3,4/pretokenize" in out and "trial 2: steps" in out
    code, out, _ = omniloom("why", str(file), "train", *own)
    assert code == 0 and [line.split()[0] for line in out.splitlines() if "/train " in line] == [
        "1/train", "2/train", "3/train", "4/train"
    ]  # fmt: skip
    code, out, _ = omniloom("why", str(file), "2/train", *own)
    assert code == 0 and out.startswith("2/train ") and "optimizer.lr 0.001 -> 0.0001" in out
    code, _, err = omniloom("why", str(file), "5/train", *own)
    assert code == 2 and "STAGE: expected one of ingest, tokenizer_image, 1,2/tokenizer_joint" in err
    code, out, _ = omniloom("verify", str(file), *own)
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()] == labels
    code, out, _ = omniloom("doctor", "--json", str(file), *own, f"sweep.fields.{LR}=[1e-3]")
    assert code == 0 and list(json.loads(out)["sizes"]) == [
        "tokenizer_image", "1/tokenizer_joint", "1/train", "2/tokenizer_joint", "2/train"
    ]  # fmt: skip
    code, _, err = omniloom("replay", str(file), "--step", "1", *own)
    assert code == 2 and "sweep: this command is of one pipeline" in err


def test_a_trial_tells_with_its_number_before_its_stages_and_its_rows_go():
    from omniloom.pipelines.display import Display
    from omniloom.pipelines.sweeps.part import Part
    from omniloom.pipelines.views.bars import Bars
    from omniloom.pipelines.views.lines import Lines

    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    part = Display(Part(Lines(console), "2/"))
    with part:
        part.note("hello")
        part.start("train", "never ran")
        part.update({"train": {"done": 1, "total": 9, "unit": "steps", "facts": {}, "time": 0.0, "notes": ["a note"]}})
        part.finish("train", 3.0, {"loss": 1.0})
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in console.export_text().splitlines()]
    assert lines == [
        "2/hello", "2/train: starting (never ran)", "2/train: a note", "2/train: done in 3 s; loss 1"
    ]  # fmt: skip
    bars = Bars(Console(width=80, force_terminal=True, file=open("/dev/null", "w")))
    with bars:
        one, other = (Display(Part(bars, f"{number}/")) for number in (1, 2))
        with other:
            other.start("train", "never ran")
            with one:
                one.start("train", "never ran")
            assert list(bars._tasks) == ["2/train"]


def test_values_that_are_no_numbers_are_named_whole_below_their_chart(swept):
    from omniloom.pipelines.sweeps.page import render

    field = "stages.train.objectives"
    values = [{"latent_diffusion": 1.0}, {"next_code": 0.5, "masked_code": 0.5}]
    trials = swept({LR: [0.01, 0.02]})
    made = rows({1: 0.5, 2: 0.9})
    for row, value in zip(made, values, strict=True):
        row.values = {field: value}
    page = render(Results("demo", "id", goal(), made), trials, {trial.number: trial for trial in trials.known})
    assert '<p class="note">1: {latent_diffusion: 1.0}; 2: {next_code: 0.5, masked_code: 0.5}</p>' in page
