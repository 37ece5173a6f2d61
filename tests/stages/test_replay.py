"""A step trained once more: the same loss bit for bit, and the document to blame by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import corpora
import pytest
from test_poisoned import config, corpus, train

from omniloom.infra import storage
from omniloom.infra.training.guard import TrainingDiverged
from omniloom.stages.replay import Replay, replay
from omniloom.stages.reporting import history
from omniloom.stages.train.job import Job
from omniloom.stages.train.replayed import parts


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


def asked(folder: Path, tokens, settings, step: int, **fields) -> Replay:
    uri = folder / "state" / "history.jsonl"
    curve = [row for row in history.load(str(uri)) if "loss" in row] if uri.exists() else []
    job = Job(settings, tokens, None, "", "", corpora.Silent(), corpora.Silent())
    return replace(Replay(parts, job, str(folder / "state"), step, curve, [], 1, step), **fields)


def test_a_spike_that_stopped_the_training_is_named(tmp_path):
    mixed, _, bad = corpus(tmp_path / "corpus", 200, 3)
    settings = config(110, on_bad_step="stop", spike_sigmas=6)
    with pytest.raises(TrainingDiverged) as caught:
        train(tmp_path / "run", mixed, settings)
    step = int(str(caught.value).removeprefix("step ").partition(":")[0])
    found = replay(asked(tmp_path / "run", mixed, settings, step))
    named = {document["path"] for document in found["documents"] if document["blamed"]}
    assert named and named <= bad and found["documents"][0]["path"] in named
    assert found["from"] == step // 20 * 20 and found["equal"] is None  # it was never logged
    assert json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_ranks_of_its_own_agree_with_one(tmp_path):
    _, clean, _ = corpus(tmp_path / "corpus", 200, 3)
    settings = config(30)
    train(tmp_path / "run", clean, settings)
    one = replay(asked(tmp_path / "run", clean, settings, 24))
    two = replay(asked(tmp_path / "run", clean, settings, 24, ranks=2))
    assert two["ranks"] == 2 and two["from"] == one["from"] == 20
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    figures = [{d["id"]: d["loss"] for d in found["documents"]} for found in (one, two)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)


@pytest.mark.parametrize(("log_every", "step"), [(1, 27), (1, 3), (8, 27)])
def test_it_is_the_same_step_bit_for_bit(tmp_path, log_every, step):
    _, clean, _ = corpus(tmp_path / "corpus", 200, 3)
    settings = config(40)
    settings.workers.log_every = log_every
    train(tmp_path / "run", clean, settings)
    before = storage.list_files(str(tmp_path / "run"))
    found = replay(asked(tmp_path / "run", clean, settings, step))
    assert found["equal"] is True and found["row"]["step"] == (step // log_every + 1) * log_every
    assert found["from"] == (20 if step >= 20 else 0) and not any(d["blamed"] for d in found["documents"])
    assert storage.list_files(str(tmp_path / "run")) == before  # it reads alone
    other = asked(tmp_path / "run", clean, settings.model_copy(update={"seed": 1}), step)
    assert replay(replace(other, state=str(tmp_path / "none")))["equal"] is False
