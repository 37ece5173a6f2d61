"""Checkpoints: what a manifest names is what lies there; what is damaged is left for the one before it, in words."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from omniloom.infra import storage
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.progress import Progress
from omniloom.infra.training import checkpoint, tensors
from omniloom.infra.training.config import EngineConfig, OptimizerConfig, WorkersConfig
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.loop import Loop
from omniloom.infra.training.saving import Saver

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
    "weights cut": lambda folder: os.truncate(next(folder.rglob("*.safetensors")), 100),
    "weights empty": lambda folder: os.truncate(next(folder.rglob("*.safetensors")), 0),
    "weights flipped": lambda folder: flip(next(folder.rglob("*.safetensors"))),
    "weights gone": lambda folder: next(folder.rglob("*.safetensors")).unlink(),
    "index flipped": lambda folder: flip(next(folder.rglob("index.json"))),
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


def test_damage_on_another_filesystem_is_seen(tmp_path):
    state, said = f"memory://damaged-{os.getpid()}", []
    two_checkpoints(state)
    assert checkpoint.latest(state)["step"] == 4
    name = next(n for n in storage.list_files(f"{state}/checkpoints") if "4/" in n and n.endswith(".safetensors"))
    data = bytearray(storage.read_bytes(f"{state}/checkpoints/{name}"))
    data[len(data) // 2] ^= 1
    storage.write_bytes(f"{state}/checkpoints/{name}", bytes(data))
    assert checkpoint.latest(state, said.append)["step"] == 2 and "step-00000004" in said[0]


def test_without_an_intact_checkpoint_training_does_not_start_from_nothing(tmp_path):
    two_checkpoints(str(tmp_path))
    assert checkpoint.latest(str(tmp_path / "other")) is None
    for step in (2, 4):
        DAMAGE["weights cut"](tmp_path / "checkpoints" / f"step-0000000{step}")
    for ask in (
        lambda: checkpoint.latest(str(tmp_path)),
        lambda: checkpoint.check(str(tmp_path)),
    ):
        with pytest.raises(OmniLoomError, match="no checkpoint is intact.*step-0*4.*step-0*2.*--force") as told:
            ask()
        assert str(tmp_path / "checkpoints") in str(told.value)


def test_the_manifest_lists_every_file_and_comes_last(tmp_path, monkeypatch):
    state, made, seen = str(tmp_path), engine(), []
    write = tensors.write
    monkeypatch.setattr(tensors, "write", lambda *a: (seen.append(checkpoint.latest(state)), write(*a))[1])
    checkpoint.save(state, 3, {"model": made, "critic": made}, {}, keep=1)
    folder = tmp_path / "checkpoints" / "step-00000003"
    manifest = json.loads(Path(f"{folder}.json").read_bytes())
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert len(files) == 4 and manifest["files"] == {
        name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for name, p in files.items()
    }
    assert seen == [None, None]
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []


def test_a_checkpoint_of_another_version_is_refused_in_words(tmp_path):
    """By `check` before workers start, and by `latest`: what it holds is divided by rank."""
    two_checkpoints(str(tmp_path))
    file = tmp_path / "checkpoints" / "step-00000004.json"
    manifest = json.loads(file.read_bytes())
    file.write_text(json.dumps({k: v for k, v in manifest.items() if k != "format"}))
    for ask in (checkpoint.check, checkpoint.latest):
        with pytest.raises(InputError, match="expected a checkpoint of format 2, got 1.*that version.*--force") as told:
            ask(str(tmp_path))
        assert told.value.file == str(file)


def test_what_an_attempt_left_that_came_further_goes_when_the_next_is_saved(tmp_path):
    """Else the damaged one would count among those that are kept."""
    two_checkpoints(str(tmp_path))
    folder, made = tmp_path / "checkpoints", engine()
    DAMAGE["weights cut"](folder / "step-00000004")
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


OTHERWISE = [
    {"zero_stage": 0},
    {"zero_stage": 1},
    {"zero_stage": 2, "offload": True},
    {"zero_stage": 3},
    {"zero_stage": 3, "offload": True},
]


@pytest.mark.parametrize("before", OTHERWISE, ids=str)
def test_a_training_goes_on_under_another_zero_stage_and_offload(tmp_path, before):
    """Bit for bit: on one rank they compute alike."""
    made = engine(**before)
    train(made, 0, 2)
    checkpoint.save(str(tmp_path), 2, {"model": made}, {}, keep=1)
    expected = train(made, 2, STEPS)
    for now in OTHERWISE:
        checkpoint.check(str(tmp_path))
        other = engine(**now)
        checkpoint.load(checkpoint.latest(str(tmp_path)), {"model": other})
        for name, value in train(other, 2, STEPS).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7, msg=f"{now}: {name}")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    class Wider(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(6, 3)

    two_checkpoints(str(tmp_path))
    other = Engine(Wider(), OptimizerConfig(), EngineConfig(ema_decay=0.9), STEPS, 4)
    with pytest.raises(OmniLoomError, match=r"weight/net.weight of the shape \(3, 6\), found of the shape \(2, 6\)"):
        checkpoint.load(checkpoint.latest(str(tmp_path)), {"model": other})
    bare = engine(ema_decay=0.0)
    checkpoint.save(str(tmp_path / "bare"), 1, {"model": bare}, {}, keep=1)
    with pytest.raises(OmniLoomError, match="ema/net.weight of the shape .* which is not there"):
        checkpoint.load(checkpoint.latest(str(tmp_path / "bare")), {"model": engine()})


def test_every_so_many_steps_a_checkpoint_is_kept_for_good(tmp_path):
    saver = Saver(str(tmp_path), {"model": engine()}, keep=1, keep_every=4)
    for step in range(2, 12, 2):
        saver.save(step, {})
    assert checkpoint.manifests(str(tmp_path / "checkpoints")) == [f"step-{step:08d}.json" for step in (10, 8, 4)]


def test_what_a_checkpoint_holds_is_of_its_step_though_training_goes_on(tmp_path, monkeypatch):
    """A step that comes while the file is written waits until it is, and the file has what was before it."""
    made, order = engine(), []
    train(made, 0, 2)
    wanted = made.state_dict()
    write = tensors.write

    def slowly(*arguments):
        time.sleep(0.5)
        order.append("read")
        return write(*arguments)

    monkeypatch.setattr(tensors, "write", slowly)
    saver = Saver(str(tmp_path), {"model": made}, keep=1)
    saver.start(2, {})
    order.append("goes on")
    train(made, 2, 4)
    order.append("stepped")
    assert saver.finish() is None and order == ["goes on", "read", "stepped"]
    again = engine()
    checkpoint.load(checkpoint.latest(str(tmp_path)), {"model": again})
    assert all(torch.equal(value, wanted[name]) for name, value in again.state_dict().items())


def test_a_save_that_fails_is_told_and_the_next_is_tried(tmp_path, monkeypatch):
    made, told = engine(), []
    saver = Saver(str(tmp_path), {"model": made}, keep=2, note=told.append)
    write = tensors.write

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "write", full)
    saver.start(2, {})
    train(made, 2, 3)  # a failed save holds nothing up
    monkeypatch.setattr(tensors, "write", write)
    saver.start(3, {})
    assert len(told) == 1 and "checkpoint not saved: " in told[0] and "No space left" in told[0]
    assert saver.finish() is None and checkpoint.latest(str(tmp_path))["step"] == 3
    monkeypatch.setattr(tensors, "write", full)
    with pytest.raises(OSError, match="No space left"):
        saver.save(4, {})
    assert checkpoint.latest(str(tmp_path))["step"] == 3


def test_the_files_are_what_safetensors_reads(tmp_path):
    made = engine(zero_stage=0)
    train(made, 0, 2)
    checkpoint.save(str(tmp_path), 2, {"model": made}, {}, keep=1)
    (file,) = tmp_path.rglob("*.safetensors")
    held, weights = load_file(file), made.state_dict(average=False)
    assert set(held) == {
        f"{kind}/net.{name}"
        for kind in ("weight", "ema", "exp_avg", "exp_avg_sq", "step")
        for name in ("weight", "bias")
    }
    assert torch.equal(held["weight/net.weight"], weights["net.weight"].flatten())
    assert held["step/net.bias"].tolist() == [2.0]


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

        log = keep = rewind = seek = close = ignore

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
