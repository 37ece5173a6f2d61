"""Recaptioning: the parting of scores against closed forms, decisions one by one, and the stage on squares of which
some have another's caption."""

from __future__ import annotations

import json
from types import SimpleNamespace

import corpora
import numpy as np
import pytest
from scipy.stats import norm
from test_features import inputs  # noqa: F401
from test_train_scorer import SMALL, train

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.stages.base import StageContext
from omniloom.stages.checkpoints.scorer import load_scorer
from omniloom.stages.data import records as written
from omniloom.stages.data.media.decode import encode_png
from omniloom.stages.data.media.limits import DEFAULT_LIMITS
from omniloom.stages.inference import marks
from omniloom.stages.ingest.rows import media_row
from omniloom.stages.recaption import captioning, recaptioning, scoring, stage
from omniloom.stages.recaption.deciding import Scored, applied, decide
from omniloom.stages.recaption.threshold import part
from omniloom.stages.scorer.stage import Config as ScorerConfig


def test_parting_is_that_of_known_distributions():
    """Wrong captions N(0, 1), a share p of all; right ones N(d, 1): the least errors are at the crossing of densities,
    t = d / 2 + log(p / (1 - p)) / d."""
    rng = np.random.default_rng(0)
    for p, d in ((0.3, 4.0), (0.1, 5.0), (0.5, 3.0)):
        count = 60_000
        wrong = rng.random(count) < p
        own, others = rng.normal(size=count) + d * ~wrong, rng.normal(size=count)
        found = part(own, others)
        t = d / 2 + np.log(p / (1 - p)) / d
        assert found.wrong == pytest.approx(p + (1 - p) * 2 * norm.cdf(-d), abs=0.01)
        assert found.threshold == pytest.approx(t, abs=0.2)
        assert found.found == pytest.approx((own < found.threshold)[wrong].mean(), abs=0.01)
        assert found.false == pytest.approx((own < found.threshold)[~wrong].mean(), abs=0.01)


def test_nothing_goes_where_nothing_is_wrong_and_all_where_nothing_is_right():
    rng = np.random.default_rng(1)
    others = rng.normal(size=5000)
    right = rng.normal(size=2000) + 9
    clean = part(right, others)
    assert clean.wrong == 0 and clean.false == 0 and clean.threshold < right.min()
    nothing = part(rng.normal(size=2000), others)
    assert nothing.wrong > 0.9 and nothing.found > 0.9
    told = part(rng.normal(size=2000) + 2, others, 1.5)
    assert told.threshold == 1.5 and told.found == pytest.approx(norm.cdf(1.5), abs=0.02)
    with pytest.raises(ValueError, match="scores"):
        part(np.zeros(0), others)


def test_decisions():
    old = Scored(["right", "wrong"], [3.0, 0.5])
    assert decide(old, Scored(), 1.0, False).outcome == "partly"
    assert decide(old, Scored(), 1.0, False).captions == ["right"]
    assert decide(old, Scored(), 0.1, False).outcome == "kept"
    better = decide(old, Scored(["worse", "best"], [2.0, 4.0]), 1.0, False)
    assert (better.outcome, better.captions, better.made) == ("replaced", ["best"], True)
    assert decide(old, Scored(["worse"], [2.0]), 1.0, False).captions == ["right"]
    assert decide(old, Scored(["right"], [9.0]), 1.0, False).outcome == "partly"  # it says what is there already
    assert decide(old, Scored(["low"], [3.9]), 4.0, False).outcome == "dropped"
    assert decide(old, Scored(), 4.0, True).outcome == "left_out"
    assert decide(Scored(), Scored(["new"], [2.0]), 1.0, False).outcome == "added"
    assert decide(Scored(), Scored(["new"], [0.5]), 1.0, False).outcome == "uncaptioned"


def test_a_records_new_caption_is_marked():
    row = {"captions": ["old", "other"], "caption": "old", "synthetic": False, "meta": '{"license": "CC0"}', "id": "x"}
    new = decide(Scored(["old", "other"], [0.0, 0.1]), Scored(["new"], [2.0]), 1.0, False)
    stays = applied(row, new, {"weights": "abc"})
    assert stays["captions"] == ["new"] and stays["caption"] == "new" and stays["synthetic"] is True
    assert json.loads(stays["meta"]) == {
        "license": "CC0",
        "recaption": {"before": ["old", "other"], "weights": "abc"},
    }
    filtered = applied(row, decide(Scored(["old", "other"], [0.0, 3.0]), Scored(), 1.0, False), {})
    assert (filtered["captions"], filtered["caption"], filtered["synthetic"]) == (["other"], "other", False)
    assert applied(row, decide(Scored(["old"], [0.0]), Scored(), 1.0, True), {}) is None
    dropped = applied(row, decide(Scored(["old"], [0.0]), Scored(), 1.0, False), {})
    assert dropped["captions"] == [] and dropped["caption"] is None and row["captions"] == ["old", "other"]


def test_scores_are_those_of_their_definition():
    """Two folds of two shards, by a loop over pairs: log of a softmax over the fold's captions times their number."""
    rng = np.random.default_rng(2)
    count, dim, scales = 40, 6, [3.0, 5.0]
    folds, pictures, texts = rng.integers(0, 2, count), rng.normal(size=(count, dim)), rng.normal(size=(count, dim))
    words = [f"caption {number % 30}" for number in range(count)]
    whole = [np.arange(count), folds, pictures, np.arange(count), texts, words]
    halves = [
        scoring.Embedded(*(part[:15] for part in whole)),
        scoring.Embedded(np.arange(25), folds[15:], pictures[15:], np.arange(25), texts[15:], words[15:]),
    ]
    judge = scoring.judge_of(halves, scales, np.random.default_rng(0))
    found = judge.scores(pictures, texts, folds)
    for i in range(count):
        fold = folds[i]
        logits = [scales[fold] * pictures[i] @ texts[j] for j in range(count) if folds[j] == fold]
        own = np.exp(scales[fold] * pictures[i] @ texts[i])
        assert found[i] == pytest.approx(np.log(own / np.sum(np.exp(logits)) * len(logits)))
    others = judge.of_others(halves, np.random.default_rng(1))
    assert 14 * count < len(others) <= 16 * count
    possible = {
        round(float(judge.scores(pictures[[i]], texts[[j]], folds[[i]])[0]), 6)
        for i in range(count)
        for j in range(count)
        if folds[i] == folds[j] and words[i] != words[j]
    }
    assert {round(float(score), 6) for score in others} <= possible


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """200 squares of four colours in two shards, of those to train on a quarter with another colour's caption; and a
    picture without one, held-out ones with wrong captions, and a text. By path: the wrong ones."""
    folder, rng = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    rows, wrong, colours = [], set(), list(corpora.COLOURS)
    places = [divmod(int(place), 16) for place in rng.permutation(256)[:201]]
    for number in range(201):
        colour = colours[number % 4]
        row = media_row("image", encode_png(corpora.square(colour, places[number])), DEFAULT_LIMITS)
        split = "validation" if number < 16 else "test" if number < 32 else "train"
        said = colour
        if 32 <= number < 200 and number // 4 % 4 == 0:
            said = colours[(number + 1 + number // 16 % 3) % 4]
            wrong.add(str(number))
        caption = {"caption": f"a {said} square"} if number < 200 else {}
        rows.append({**row, **caption, "split": split, "source": "s", "path": str(number), "part": 0, "meta": "{}"})
    text = {"kind": "text", "text": "words", "id": "0" * 64, "split": "train", "synthetic": False}
    rows.append({**text, "source": "s", "path": "text", "part": 0, "meta": "{}"})
    for index, part_ in enumerate((rows[:120], rows[120:])):
        written.write_shard(str(folder / written.shard_name(index)), part_)
    return corpora.seal(folder, "ingest"), wrong


@pytest.fixture(scope="module")
def scorer(tmp_path_factory, corpus, process_group):
    own = ScorerConfig.model_validate({**SMALL, "folds": 2, "steps": 100, "batch": 32})
    return train(tmp_path_factory.mktemp("scorer"), corpus[0], own)


def run(folder, corpus, scorer, **fields):
    config = stage.Config.model_validate(fields)
    read = {"records": corpus, "scorer": scorer}
    context = StageContext("recaption", "f" * 64, config, read, str(folder), corpora.Silent(), corpora.Silent())
    metrics = stage.run(context)
    lines = [
        json.loads(line) for line in storage.read_bytes(f"{context.output}/recaption/decisions.jsonl").splitlines()
    ]
    return metrics, list(written.iterate(context.output)), lines, context


def test_wrong_captions_are_found_and_others_stay(tmp_path, corpus, scorer):
    """By a threshold that nobody told: at least 90% of them at most 5% false."""
    records, wrong = corpus
    metrics, rows, lines, context = run(tmp_path, records, scorer)
    gone = {line["path"] for line in lines if line["outcome"] == "dropped"}
    right = {line["path"] for line in lines} - wrong - {"200"}
    assert len(gone & wrong) >= 0.9 * len(wrong) and len(gone & right) <= 0.05 * len(right)
    assert metrics["recaption_wrong"] == pytest.approx(len(wrong) / 168, abs=0.15)
    assert metrics["recaption_dropped"] == len(gone) and metrics["records"] == 202 == len(rows)
    assert metrics["recaption_uncaptioned"] == 1 and metrics["synthetic"] == 0
    before = {row["path"]: row for row in written.iterate(records.uri)}
    for row in rows:
        expected = before[row["path"]]
        if row["path"] in gone:
            expected = {**expected, "caption": None, "captions": []}
        assert row == expected
    html = storage.read_bytes(f"{context.output}/recaption.html").decode()
    assert "What became of pictures" in html and html.count("data:image/png") >= 3
    assert f"dropped {len(gone)}" in stage.summary(metrics)


def test_a_model_writes_and_the_scorer_takes_the_better(tmp_path, corpus, scorer, monkeypatch):
    """A writer that says the truth of one colour and nonsense of the others."""
    records, wrong = corpus

    class Writer:
        made_by = {"weights": "abc"}

        def __init__(self, config, device):
            self.calls = 0

        def write(self, pictures, seeds):
            assert len(set(seeds)) == len(seeds) and all(picture.shape == (24, 24, 3) for picture in pictures)
            named = [
                min(corpora.COLOURS, key=lambda c: abs(p.reshape(-1, 3).max(0) - corpora.COLOURS[c]).sum())
                for p in pictures
            ]
            return [[f"a {name} square" if name == "red" else "square a"] for name in named]

    monkeypatch.setattr(recaptioning, "Captioner", Writer)
    metrics, rows, lines, _ = run(tmp_path, records, scorer, model="somewhere", uncaptioned="leave_out")
    by_path = {row["path"]: row for row in rows}
    replaced = {line["path"] for line in lines if line["outcome"] == "replaced"}
    red_and_wrong = {path for path in wrong if int(path) % 4 == 0}
    assert len(replaced & red_and_wrong) >= 0.9 * len(red_and_wrong)
    assert metrics["synthetic"] >= len(replaced & red_and_wrong)
    for path in replaced & red_and_wrong:
        assert by_path[path]["captions"] == ["a red square"] and by_path[path]["synthetic"]
        assert json.loads(by_path[path]["meta"])["recaption"]["weights"] == "abc"
    assert metrics["recaption_left_out"] == 202 - len(rows) > 0
    assert by_path["200"]["captions"] == ["a red square"]  # which had none


def test_a_real_model_writes(tmp_path, scorer, inputs):  # noqa: F811
    """One that has learnt nothing: what it says is scored, and the same when it is asked again."""
    fields = {"model": inputs["model"].uri, "max_tokens": 4, "captions": 2, "threshold": -50.0}
    metrics, rows, lines, context = run(tmp_path / "one", inputs["records"], scorer, **fields)
    told = storage.load_json(f"{context.state}/written/00000.json")["captions"]
    assert told and all(0 < len(own) <= 2 and len(set(own)) == len(own) for own in told)
    assert all("written" in line and len(line["before"]) == 1 for line in lines)
    for line in lines:
        (before,), written_one = line["before"], line["written"]
        assert line["captions"] == [written_one[0] if written_one[1] > before[1] else before[0]]
    made = [json.loads(row["meta"])["recaption"] for row in rows if row["synthetic"]]
    assert metrics["synthetic"] == len(made) == metrics.get("recaption_replaced", 0)
    assert {one["weights"] for one in made} <= {marks.identity(inputs["model"].uri)["weights"]}
    assert run(tmp_path / "two", inputs["records"], scorer, **fields)[2] == lines


def test_a_killed_run_goes_on_to_the_same_records(tmp_path, corpus, scorer):
    records, _ = corpus
    config = stage.Config()
    read = {"records": records, "scorer": scorer}
    whole = run(tmp_path / "whole", records, scorer)[3]
    for step in (1, 3):
        place = (str(tmp_path / "cut"), corpora.KilledAt(step), corpora.Silent())
        with pytest.raises(corpora.Killed):
            stage.run(StageContext("recaption", "f" * 64, config, read, *place))
    run(tmp_path / "cut", records, scorer)
    for name in (written.shard_name(0), written.shard_name(1), "recaption/decisions.jsonl", "recaption.html"):
        assert storage.sha256(f"{whole.output}/{name}") == storage.sha256(f"{tmp_path}/cut/output/{name}"), name


def test_each_record_is_scored_by_the_scorer_that_has_not_seen_it(corpus, scorer):
    held = scoring.embed(written.shards(corpus[0].uri)[1], load_scorer(scorer))
    rows = list(written.iterate_shard(written.shards(corpus[0].uri)[1]))
    encoders = load_scorer(scorer)
    for place in (0, 7, 30):
        row = rows[held.rows[place]]
        own = encoders.pictures([scoring.decode_record(row, (24, 24), 1)[0]])[0, int(row["id"][32:48], 16) % 2]
        np.testing.assert_allclose(held.pictures[place], own, atol=1e-5)


def test_a_scorer_that_has_seen_the_records_is_refused(tmp_path):
    with pytest.raises(InputError, match="folds"):
        stage.check(stage.Config(), {"scorer": ScorerConfig(folds=1)})
    stage.check(stage.Config(), {"scorer": ScorerConfig(folds=2)})
    stage.check(stage.Config(), {"scorer": SimpleNamespace(steps=0, folds=1)})
    with pytest.raises(InputError) as error:
        stage.check(stage.Config(model=str(tmp_path)), {})
    assert error.value.field == "model"
    with pytest.raises(ValueError, match="registry"):
        stage.Config(model="models:/a@b")
    assert captioning.Captioner  # what a model is loaded by
