"""Checkpoints: what a manifest names is what lies there; what is damaged is left for the one before it, in words."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from omniloom.infra import storage
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.progress import Progress
from omniloom.infra.training import checkpoint
from omniloom.infra.training.config import EngineConfig, OptimizerConfig, WorkersConfig
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.loop import Loop

STEPS = 8


@pytest.fixture(autouse=True)
def alone(process_group, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 2)

    def forward(self, x, y):
        return (self.net(x) - y).square().mean(), {}


def engine(**fields) -> Engine:
    torch.manual_seed(0)
    config = EngineConfig(**{"ema_decay": 0.9, **fields})
    return Engine(Net(), OptimizerConfig(lr=3e-2, warmup_steps=0), config, STEPS, 4)


def train(made: Engine, start: int, stop: int) -> dict[str, torch.Tensor]:
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(4, 6, generator=generator)
        made.backward(made(x, x[:, :2])[0])
        made.step(step)
    return made.state_dict()


def two_checkpoints(state: str) -> dict[str, torch.Tensor]:
    """Saved after 2 and 4 steps; the weights at the end."""
    made = engine()
    for step in (2, 4):
        train(made, step - 2, step)
        checkpoint.save(state, step, {"model": made}, {"at": step}, keep=2)
    return train(made, 4, STEPS)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "model cut": lambda folder: os.truncate(next(folder.rglob("*model_states.pt")), 500),
    "model empty": lambda folder: os.truncate(next(folder.rglob("*model_states.pt")), 0),
    "model flipped": lambda folder: flip(next(folder.rglob("*model_states.pt"))),
    "optimizer gone": lambda folder: next(folder.rglob("*optim_states.pt")).unlink(),
    "optimizer flipped": lambda folder: flip(next(folder.rglob("*optim_states.pt"))),
    "all gone": lambda folder: storage.remove(str(folder)),
    "json cut": lambda folder: os.truncate(f"{folder}.json", 20),
    "json empty": lambda folder: os.truncate(f"{folder}.json", 0),
    "json of zeros": lambda folder: Path(f"{folder}.json").write_bytes(bytes(300)),
    "json of another kind": lambda folder: Path(f"{folder}.json").write_text("[]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(tmp_path, name):
    wanted, said = two_checkpoints(str(tmp_path)), []
    assert checkpoint.latest(str(tmp_path), said.append)["step"] == 4 and not said
    newest = tmp_path / "checkpoints" / "step-00000004"
    DAMAGE[name](newest)
    found = checkpoint.latest(str(tmp_path), said.append)
    assert (found["step"], found["position"]) == (2, {"at": 2})
    assert len(said) == 1 and str(newest) in said[0] and found["folder"] in said[0]
    again = engine()
    checkpoint.load(found, {"model": again})
    for weight, value in train(again, 2, STEPS).items():
        assert torch.equal(value, wanted[weight]), weight


def test_the_fault_of_a_copy_on_another_filesystem_is_seen_and_the_copy_dropped(tmp_path):
    state, said = f"memory://damaged-{os.getpid()}", []
    two_checkpoints(state)
    assert checkpoint.latest(state)["step"] == 4
    for file in (tmp_path / "cache").rglob("*optim_states.pt"):
        flip(file)
    assert checkpoint.latest(state, said.append)["step"] == 2 and "step-00000004" in said[0]
    assert checkpoint.latest(state)["step"] == 4  # copied anew


def test_without_an_intact_checkpoint_training_does_not_start_from_nothing(tmp_path):
    two_checkpoints(str(tmp_path))
    assert checkpoint.latest(str(tmp_path / "other")) is None
    for step in (2, 4):
        DAMAGE["model cut"](tmp_path / "checkpoints" / f"step-0000000{step}")
    for ask in (
        lambda: checkpoint.latest(str(tmp_path)),
        lambda: checkpoint.check(str(tmp_path), 1, {"model": EngineConfig()}),
    ):
        with pytest.raises(OmniLoomError, match="no checkpoint is intact.*step-0*4.*step-0*2.*--force") as told:
            ask()
        assert str(tmp_path / "checkpoints") in str(told.value)


def test_the_manifest_lists_every_file_and_comes_last(tmp_path, monkeypatch):
    state, made, seen = str(tmp_path), engine(), []
    save = Engine.save
    monkeypatch.setattr(Engine, "save", lambda *a, **k: (seen.append(checkpoint.latest(state)), save(*a, **k)))
    checkpoint.save(state, 3, {"model": made, "critic": made}, {}, keep=1)
    folder = tmp_path / "checkpoints" / "step-00000003"
    manifest = json.loads(Path(f"{folder}.json").read_bytes())
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert len(files) >= 4 and manifest["files"] == {
        name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for name, p in files.items()
    }
    assert manifest["engines"]["critic"] == {"zero_stage": 1, "offload": False}
    assert seen == [None, None]
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []


def test_a_checkpoint_of_a_version_that_listed_no_files_is_taken(tmp_path):
    two_checkpoints(str(tmp_path))
    file = tmp_path / "checkpoints" / "step-00000004.json"
    manifest = json.loads(file.read_bytes())
    file.write_text(json.dumps({k: v for k, v in manifest.items() if k not in ("files", "engines")}))
    checkpoint.load(checkpoint.latest(str(tmp_path)), {"model": engine()})


def test_what_an_attempt_left_that_came_further_goes_when_the_next_is_saved(tmp_path):
    """Else the damaged one would count among those that are kept."""
    two_checkpoints(str(tmp_path))
    folder, made = tmp_path / "checkpoints", engine()
    DAMAGE["model cut"](folder / "step-00000004")
    (folder / ".tmp-rank-3" / "model").mkdir(parents=True)
    (folder / ".tmp-rank-3" / "model" / "x.pt").write_bytes(b"half")
    (folder / "step-00000009" / "model").mkdir(parents=True)
    (folder / "step-00000009" / "model" / "x.pt").write_bytes(b"half")
    checkpoint.load(checkpoint.latest(str(tmp_path)), {"model": made})
    train(made, 2, 3)
    checkpoint.save(str(tmp_path), 3, {"model": made}, {}, keep=2)
    assert sorted(p.name for p in folder.iterdir()) == [
        "step-00000002",
        "step-00000002.json",
        "step-00000003",
        "step-00000003.json",
    ]


@pytest.mark.parametrize(
    "before, now, fits",
    [(0, 1, False), (1, 0, False), (1, 2, True), (2, 1, True), (2, 3, False), (3, 2, False), (0, 3, False)],
)
def test_another_zero_stage_goes_on_where_files_are_alike_and_is_refused_elsewhere(tmp_path, before, now, fits):
    made = engine(zero_stage=before)
    train(made, 0, 2)
    checkpoint.save(str(tmp_path), 2, {"model": made}, {}, keep=1)
    asked = EngineConfig(zero_stage=now, ema_decay=0.9, offload=True)
    if fits:
        checkpoint.check(str(tmp_path), 1, {"model": asked})
        other = engine(zero_stage=now, offload=True)
        checkpoint.load(checkpoint.latest(str(tmp_path)), {"model": other})
        expected = train(made, 2, STEPS)
        assert all(torch.equal(value, expected[name]) for name, value in train(other, 2, STEPS).items())
        return
    with pytest.raises(InputError, match=f"under ZeRO stage {before}, cannot go on under {now}.*--force") as caught:
        checkpoint.check(str(tmp_path), 1, {"model": asked})
    assert caught.value.field == "engine.zero_stage"
    with pytest.raises(InputError, match="ZeRO stage"):
        checkpoint.load(checkpoint.latest(str(tmp_path)), {"model": engine(zero_stage=now)})


def test_another_number_of_workers_is_refused_before_any_starts(tmp_path):
    two_checkpoints(str(tmp_path))
    checkpoint.check(str(tmp_path), 1, {"model": EngineConfig()})
    checkpoint.check(str(tmp_path / "nothing"), 5, {"model": EngineConfig()})
    with pytest.raises(InputError, match="written by 1 workers, cannot go on with 2") as caught:
        checkpoint.check(str(tmp_path), 2, {"model": EngineConfig()})
    assert caught.value.field == "workers.count"


def test_the_last_step_is_kept_before_what_follows_it(tmp_path):
    """A validation, or saving the results, that dies after the last step costs no step and no figure."""
    calls, trained = [], []

    class Counting:
        unit, amounts, engines, position = "images", (), {}, {"at": 5}

        def __init__(self, validate):
            self.validate = validate

        def train_step(self, step, batch):
            trained.append(step)
            return {"loss": float(step)}, 10.0

        def at(self, step):
            return None

        def ignore(self, *arguments):
            pass

        log = rewind = seek = close = ignore

    def loop(validate) -> Loop:
        counting = Counting(validate)
        workers = WorkersConfig(count=1, log_every=2, checkpoint_every=100)
        return Loop(5, workers, counting, counting, str(tmp_path), Progress("training"), validate_every=2)

    def dies_at_the_end(step: int) -> None:
        calls.append(step)
        if step == 5:
            raise RuntimeError("no memory left")

    with pytest.raises(RuntimeError):
        loop(dies_at_the_end).run()
    found = checkpoint.latest(str(tmp_path))
    assert found["step"] == 5 and calls == [2, 4, 5]
    result = loop(calls.append).run()
    assert trained == [0, 1, 2, 3, 4] and calls == [2, 4, 5, 5]
    assert result["units"] == 50.0 and result["loss"] == 4.0
