"""A step of a scorer's training once more: the same loss bit for bit, and what each pair has of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_train_scorer import config, job, records, train  # noqa: F401  # records is a fixture

from omniloom.stages.replay import Replay, replay
from omniloom.stages.reporting import history
from omniloom.stages.scorer.replayed import measure, parts
from omniloom.stages.scorer.worker import assemble


@pytest.fixture(scope="module", autouse=True)
def group(process_group):
    yield


def asked(folder, records, own, step: int) -> Replay:  # noqa: F811
    curve = [row for row in history.load(str(folder / "output" / "report" / "history.jsonl")) if "loss" in row]
    return Replay(parts, job(folder, records, own), str(folder / "state"), step, curve, [], 1, step)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_it_is_the_same_step_and_its_pairs_make_up_its_loss(tmp_path, records, loss):  # noqa: F811
    workers = {"count": 1, "log_every": 1, "checkpoint_every": 4, "keep_checkpoints": 3}
    own = config(loss=loss, folds=2, steps=10, workers=workers)
    train(tmp_path, records, own)
    found = replay(asked(tmp_path, records, own, 6))
    assert (found["from"], found["equal"], found["row"]["step"]) == (4, True, 7)
    told = found["documents"]
    assert {pair["task"] for pair in told} == {"fold0", "fold1"} and len(told) == 2 * own.batch
    assert np.mean([pair["loss"] for pair in told]) == pytest.approx(found["loss"], rel=1e-5)
    assert all(pair["grad_norm"] > 0 and pair["id"] and pair["source"] == "squares" for pair in told)


def test_a_pairs_gradient_is_that_of_its_loss_among_the_others(tmp_path, records):  # noqa: F811
    """Against the whole batch's graph, in which all other embeddings are cut off from the weights."""
    own = config(steps=3)
    trainer, loader = assemble(job(tmp_path, records, own))
    try:
        batch = loader.at(0)
        found = measure(trainer, loader, 0, batch)
        origins = loader.origins(0, 0)
    finally:
        loader.close()
    assert [pair["path"] for pair in found] == [origin["path"] for origin in origins]
    encoder, module, pairs, place = trainer.encoders[0], trainer.engines["fold0"].module, batch[0], 5
    clip, ids = module.clip, encoder.ids(pairs.captions)
    alone = torch.arange(len(ids))[:, None] == place
    x, y = (
        F.normalize(rows, dim=-1) for rows in (clip.of_pictures(encoder.normalised(pairs.pixels)), clip.of_texts(ids))
    )
    x, y = torch.where(alone, x, x.detach()), torch.where(alone, y, y.detach())
    logits = module.log_scale.exp() * x @ y.T
    right = pairs.same / pairs.same.sum(1, keepdim=True)
    loss = -(right[place] * (logits.log_softmax(1)[place] + logits.log_softmax(0)[:, place])).sum() / 2
    trained = [p for p in module.parameters() if p.requires_grad]
    gradients = [g for g in torch.autograd.grad(loss, trained, allow_unused=True) if g is not None]
    norm = torch.stack([g.double().norm() for g in gradients]).norm()
    assert found[place]["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert found[place]["grad_norm"] == pytest.approx(float(norm), rel=1e-3)
