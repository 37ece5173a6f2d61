"""Bad steps in real engines and a real loop: what is skipped changes nothing, and going back leaves out what was to
blame, alike on every rank."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from omniloom.infra import storage
from omniloom.infra.progress import Progress
from omniloom.infra.training.config import EngineConfig, OptimizerConfig, WorkersConfig
from omniloom.infra.training.divergence import checksum
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.loop import Loop, TrainingDiverged

STEPS = 24
OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_steps=3, weight_decay=0.1, grad_clip=0.5, schedule="constant")


class Documents(nn.Module):
    """A regression on rows that are documents of their own."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        self.register_buffer("constant", torch.arange(3.0))

    def forward(self, x):
        loss = (self.net(x)[:, 0] - x.sum(1)).square().mean()
        return loss, {"loss": loss.detach()}


def engine(accumulate: int = 1, **fields) -> Engine:
    torch.manual_seed(0)
    return Engine(Documents(), OPTIMIZER, EngineConfig(**{"ema_decay": 0.9, **fields}), STEPS, 8, accumulate)


def document(number: int, bad: float | None) -> torch.Tensor:
    x = torch.randn(6, generator=torch.Generator().manual_seed(number))
    return x if bad is None else torch.full_like(x, bad)


class Training:
    """A trainer and a loader of eight documents a step, of which `poison` maps some to what they hold."""

    unit, amounts = "images", ()

    def __init__(self, folder: Path, poison: dict[int, float], config: EngineConfig, **workers):
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.folder, self.poison, self.config = folder, poison, config
        self.engine = engine(**config.model_dump())
        self.engines = {"model": self.engine}
        self.rows, self.trained, self.left_out, self.next = [], [], set(), 0
        self.workers = WorkersConfig(count=self.ranks, checkpoint_every=5, log_every=1, **workers)
        self.notes = Progress("training")
        self.notes.note = self.rows.append
        self.loop = Loop(STEPS, self.workers, self, self, str(folder), self.notes, 1000, numerics=config)

    def at(self, step):
        self.next = step + 1
        own = [n for n in range(8 * step, 8 * step + 8) if n % self.ranks == self.rank and f"d{n}" not in self.left_out]
        return [(n, document(n, self.poison.get(n))) for n in own]

    def train_step(self, step, batch):
        self.trained.append(step)
        loss, logs = self.engine(torch.stack([x for _, x in batch]))
        self.engine.backward(loss)
        return {"loss": float(logs["loss"]), **self.engine.step(step)}, len(batch)

    def measure(self, step, loader):
        found = []
        for number, x in self.at(step):
            loss, _ = self.engine.module(x[None])
            grads = torch.autograd.grad(loss, list(self.engine.module.parameters()))
            norm = float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads])))
            found.append({"id": f"d{number}", "task": "row", "loss": float(loss.detach()), "grad_norm": norm})
        parts = [None] * self.ranks
        if self.ranks == 1:
            return found
        dist.all_gather_object(parts, found)
        return [document for part in parts for document in part]

    @property
    def position(self):
        return {"next": self.next}

    def seek(self, position):
        self.left_out = set(position.get("left_out", ()))

    def kind(self, batch):
        return ""

    def describe(self, step):
        return f"documents from {8 * step}"

    def ignore(self, *arguments):
        pass

    validate = rewind = close = log = keep = ignore

    def weights(self) -> list[torch.Tensor]:
        return [value.clone() for value in self.engine.state_dict(average=False).values()]


@pytest.fixture(scope="module")
def group(process_group):
    yield


def state(held: Engine) -> dict[str, torch.Tensor]:
    from omniloom.infra.training.shards import shards

    return {shard.key: shard.values.clone() for shard in shards(held)}


@pytest.mark.parametrize(
    ("zero_stage", "accumulate", "bad"), [(0, 2, math.nan), (1, 2, 1e4), (2, 1, math.inf), (3, 1, math.nan)]
)
def test_an_update_that_is_not_accepted_changes_nothing(group, zero_stage, accumulate, bad):
    held, asked = engine(accumulate, zero_stage=zero_stage), []
    plain = engine(accumulate, zero_stage=zero_stage)

    def train(one: Engine, step: int, value: float | None = None) -> dict:
        for half in range(accumulate):
            x = torch.stack([document(8 * step + n, value) for n in range(4 * half, 4 * half + 4)])
            loss, _ = one(x)
            one.backward(loss)
            logs = one.step(step)
        return {name: float(value) for name, value in logs.items()}

    def accepts(loss: float, norm: float) -> bool:
        asked.append((loss, norm))
        return math.isfinite(norm) and norm < 1000

    held.accepts = accepts
    train(held, 0, bad)  # before the optimizer has any state
    for step in (1, 2):
        assert train(held, step) == pytest.approx(train(plain, step))
    before = state(held)
    train(held, 3, bad)
    after = state(held)
    assert all(torch.equal(value, before[key]) for key, value in after.items()) and set(after) == set(before)
    assert train(held, 4) == pytest.approx(train(plain, 4))
    expected, found = state(plain), state(held)
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert len(asked) == 5 and not (asked[0][1] < 1000) and not (asked[3][1] < 1000)


def test_accepted_updates_are_those_of_a_training_that_asks_nobody(group):
    asking, plain = engine(zero_stage=1), engine(zero_stage=1)
    figures = []
    asking.accepts = lambda loss, norm: figures.append((loss, norm)) or True
    for step in range(4):
        for one in (asking, plain):
            loss, logs = one(torch.stack([document(8 * step + n, None) for n in range(8)]))
            one.backward(loss)
            found = one.step(step)
        assert figures[-1] == pytest.approx((float(logs["loss"]), float(found["grad_norm"])), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(state(asking).values(), state(plain).values(), strict=True))


def settings(action: str, **fields) -> EngineConfig:
    return EngineConfig(**{"on_bad_step": action, "spike_window": 8, "zero_stage": 1, "ema_decay": 0.9, **fields})


def test_by_default_a_step_that_is_not_finite_ends_the_training(group, tmp_path):
    with pytest.raises(TrainingDiverged, match="step 2: loss is nan; batch: documents from 16"):
        Training(tmp_path, {17: math.nan}, EngineConfig(zero_stage=1)).loop.run()


def test_with_stop_a_spike_ends_the_training_where_it_is_asked_for(group, tmp_path):
    poison = {8 * 13: 40.0}
    Training(tmp_path / "a", poison, EngineConfig(zero_stage=1)).loop.run()
    with pytest.raises(TrainingDiverged, match=r"step 13: loss is .* deviations above the last .*from 104"):
        Training(tmp_path / "b", poison, settings("stop", spike_sigmas=8)).loop.run()


def test_skipped_steps_are_as_if_they_had_never_been(group, tmp_path):
    training = Training(tmp_path / "a", {8 * 10: math.nan, 8 * 13 + 2: 40.0}, settings("skip"))
    last = training.loop.run()
    assert training.loop.guard.bad.counts == {"bad_steps": 2, "steps_left_out": 2, "documents_left_out": 0}
    assert last["bad_steps"] == 2 and last["units"] == 8 * 22
    without = Training(tmp_path / "b", {}, EngineConfig(zero_stage=1, ema_decay=0.9))
    for step in (s for s in range(STEPS) if s not in (10, 13)):
        without.train_step(step, without.at(step))
    assert all(torch.equal(a, b) for a, b in zip(training.weights(), without.weights(), strict=True))


def test_a_resumed_training_skips_the_same(group, tmp_path):
    poison = {8 * 13: 40.0, 8 * 21: math.inf}
    whole = Training(tmp_path / "whole", poison, settings("skip"))
    whole.loop.run()
    cut = Training(tmp_path / "cut", poison, settings("skip"))
    cut.loop.steps = 15  # its last checkpoint is of step 15; 13 is behind it
    cut.loop.run()
    resumed = Training(tmp_path / "cut", poison, settings("skip"))
    resumed.loop.run()
    assert resumed.trained == list(range(15, STEPS))
    assert resumed.loop.guard.bad.state == whole.loop.guard.bad.state and len(whole.loop.guard.bad.found) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole.weights(), resumed.weights(), strict=True))


def test_too_many_bad_steps_have_a_last_word(group, tmp_path):
    poison = {8 * step: math.nan for step in (3, 4, 5)}
    with pytest.raises(TrainingDiverged, match="step 5: .*bad step number 3, and engine.max_bad_steps is 2") as caught:
        Training(tmp_path, poison, settings("skip", max_bad_steps=2)).loop.run()
    assert "documents from 40" in str(caught.value)


# ---- going back ----

BAD = {8 * 2 + 5: math.nan, 8 * 13 + 2: 40.0, 8 * 13 + 7: -40.0}


def test_going_back_leaves_out_the_documents_to_blame(group, tmp_path):
    training = Training(tmp_path / "a", BAD, settings("rollback"))
    last = training.loop.run()
    found = training.loop.guard.bad.found
    assert [(bad.step, sorted(d["id"] for d in bad.documents)) for bad in found] == [
        (2, ["d21"]),
        (13, ["d106", "d111"]),
    ]
    assert training.trained == [0, 1, 2, *range(14), *range(10, STEPS)]  # back to 0, and to the checkpoint of step 10
    assert last["bad_steps"] == 2 and training.left_out == {"d21", "d106", "d111"}
    assert any("step 13: loss is" in note and "goes back" in note for note in training.rows)
    without = Training(tmp_path / "b", BAD, EngineConfig(zero_stage=1, ema_decay=0.9))
    without.left_out = training.left_out
    for step in range(STEPS):
        without.train_step(step, without.at(step))
    assert all(torch.equal(a, b) for a, b in zip(training.weights(), without.weights(), strict=True))
    assert training.loop.guard.save(str(tmp_path / "out"))["documents_left_out"] == 3
    written = storage.read_json(str(tmp_path / "out" / "report" / "bad_steps.json"))["found"]
    assert written[0]["documents"][0] == {
        "id": "d21",
        "task": "row",
        "loss": None,
        "grad_norm": None,
        "deviations": None,
    }


def test_a_run_that_dies_after_going_back_leaves_out_the_same(group, tmp_path):
    class Dies(Training):
        def train_step(self, step, batch):
            if step == 12 and self.left_out >= {"d106"}:
                raise KeyboardInterrupt
            return super().train_step(step, batch)

    whole = Training(tmp_path / "whole", BAD, settings("rollback"))
    whole.loop.run()
    with pytest.raises(KeyboardInterrupt):
        Dies(tmp_path / "cut", BAD, settings("rollback")).loop.run()
    resumed = Training(tmp_path / "cut", BAD, settings("rollback"))
    resumed.loop.run()
    assert resumed.trained == list(range(10, STEPS))
    assert resumed.loop.guard.bad.state == whole.loop.guard.bad.state
    assert all(torch.equal(a, b) for a, b in zip(whole.weights(), resumed.weights(), strict=True))


def test_where_no_document_stands_out_the_step_is_left_out(group, tmp_path):
    class Unknowing(Training):
        def measure(self, step, loader):
            return []

    training = Unknowing(tmp_path, {8 * 13: 40.0}, settings("rollback"))
    training.loop.run()
    assert training.loop.guard.bad.counts == {"bad_steps": 1, "steps_left_out": 1, "documents_left_out": 0}
    assert training.trained == [*range(14), 10, 11, 12, *range(14, STEPS)]


# ---- ranks ----


def test_a_checksum_sees_every_bit():
    values = torch.randn(50)
    flipped = values.clone()
    flipped.view(torch.int32)[17] ^= 1
    assert checksum(values) == checksum(values.clone()) != checksum(flipped)
    for dtype in (torch.bfloat16, torch.float64, torch.int64, torch.bool):
        assert checksum(torch.zeros((), dtype=dtype)) == 0 != checksum(torch.ones(2, 2, dtype=dtype))
    assert checksum(torch.tensor([math.nan])) == checksum(torch.tensor([math.nan]))


def _ranks(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        rank, root = dist.get_rank(), Path(folder)
        # Documents go to ranks in turn, so that each bad one is seen by one rank alone.
        skipping = Training(root / "skip", BAD, settings("skip"))
        skipping.loop.run()
        back = Training(root / "back", BAD, settings("rollback"))
        back.loop.run()
        diverging = Training(root / "diverging", {}, settings("stop", zero_stage=0))

        def flip(step, batch, train=diverging.train_step):
            logs = train(step, batch)
            if step == 7 and rank == 1:
                diverging.engine.module.net[0].bias.data.view(torch.int32)[0] ^= 1
            return logs

        diverging.train_step = flip
        told = ""
        try:
            diverging.loop.run()
        except TrainingDiverged as error:
            told = str(error)
        healed = Training(root / "healed", {}, settings("rollback", spike_sigmas=100))
        once = []

        def flip_buffer(step, batch, train=healed.train_step):
            if step == 7 and rank == 1 and not once:
                once.append(healed.engine.module.constant.add_(1))
            return train(step, batch)

        healed.train_step = flip_buffer
        healed.loop.run()
        torch.save(
            {
                "skip": [skipping.loop.guard.bad.state, skipping.weights()],
                "back": [back.loop.guard.bad.state, sorted(back.left_out), back.trained],
                "told": told,
                "healed": [healed.loop.guard.bad.state["found"], healed.trained],
            },
            root / f"rank-{rank}.pt",
        )
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_decide_alike(tmp_path):
    import subprocess

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    subprocess.run([*command, str(tmp_path)], check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]
    assert ranks[0]["skip"][0] == ranks[1]["skip"][0]
    assert {bad["step"] for bad in ranks[0]["skip"][0]["found"]} >= {2, 13}
    assert ranks[0]["back"] == ranks[1]["back"] and ranks[0]["back"][1] == ["d106", "d111", "d21"]
    assert ranks[0]["told"] == ranks[1]["told"]
    assert ranks[0]["told"].startswith("step 7: ranks differ in model's net.0.bias, of which each has a copy")
    (found,), trained = ranks[0]["healed"]
    assert ranks[1]["healed"] == ranks[0]["healed"] and found["action"] == "reload"
    assert found["why"] == "ranks differ in model's constant" and trained == [*range(8), *range(5, STEPS)]


if __name__ == "__main__":
    _ranks(sys.argv[1])
