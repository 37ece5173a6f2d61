"""Training: the engine against plain torch, ZeRO stages and ranks against each other, checkpoints, the loop."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from omniloom.infra.errors import OmniLoomError
from omniloom.infra.progress import Progress, ProgressBoard
from omniloom.infra.training import checkpoint, stopping, tensors
from omniloom.infra.training.config import EngineConfig, OptimizerConfig, WorkersConfig
from omniloom.infra.training.engine import Engine, reduce_sum
from omniloom.infra.training.loop import Loop, TrainingDiverged
from omniloom.models.unified.batch import Segment, collate
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import MixtureConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.layouts import plain_text, text_to_visual, visual_to_text
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.alignment import FeatureAlignment
from omniloom.models.unified.objectives.objective import UnifiedObjective, part_of
from omniloom.models.unified.representations import OBJECTIVES

OPTIMIZER = OptimizerConfig(lr=3e-3, warmup_steps=3, weight_decay=0.1, grad_clip=0.5)
# As large as to leave ZeRO-3 something to divide: what has under 100 000 numbers it keeps whole.
UNIFIED = UnifiedConfig(
    vocab_size=7000,
    latent_dim=3,
    pixel_dim=12,
    pixel_bottleneck=8,
    codebook_size=16,
    width=16,
    layers=2,
    heads=2,
    time_dim=8,
    density=MixtureConfig(components=3),
)
LENGTH, UNIFIED_STEPS, FEATURES = 48, 20, 5
STEPS = 10


class Regression(nn.Module):
    """A module as the stages' objectives are: one forward pass gives the loss and what is logged."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 2))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, y):
        self.calls += 1
        loss = (self.net(x) - y).square().mean()
        return loss, {"loss": loss.detach()}


def example(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, generator=generator)
    return x, torch.stack([x[:, 0] * x[:, 1], x.sum(1)], dim=1)


def regression(**fields) -> Engine:
    torch.manual_seed(0)
    return Engine(Regression(), OPTIMIZER, EngineConfig(**{"zero_stage": 0, **fields}), STEPS, 8)


def steps(engine: Engine, start: int, stop: int) -> list[dict]:
    logs = []
    for step in range(start, stop):
        loss, found = engine(*example(step))
        engine.backward(loss)
        logs.append({"loss": float(found["loss"]), **engine.step(step)})
    return logs


@pytest.fixture(scope="module")
def group(process_group):
    yield


def plain(count: int) -> tuple[nn.Module, list[dict], list[list[torch.Tensor]]]:
    """The same training written with torch alone: losses, norms, and the weights after each step."""
    torch.manual_seed(0)
    module = Regression()
    weights = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95), eps=1e-8
    )
    logs, kept = [], []
    for step in range(count):
        for entry in adam.param_groups:
            entry["lr"] = OPTIMIZER.lr_at(step, STEPS)
        loss, _ = module(*example(step))
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        adam.step()
        logs.append({"loss": float(loss.detach()), "grad_norm": float(norm), "lr": OPTIMIZER.lr_at(step, STEPS)})
        kept.append([p.detach().clone() for p in module.parameters()])
    return module, logs, kept


# ---- one rank ----


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_the_engine_trains_like_plain_adamw(group, zero_stage):
    engine = regression(zero_stage=zero_stage)
    logs = steps(engine, 0, STEPS)
    module, expected, _ = plain(STEPS)
    for found, wanted in zip(logs, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
    state = engine.state_dict()
    assert set(state) == set(module.state_dict()) and int(state["calls"]) == STEPS
    for name, value in module.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-6)


def test_the_moving_average_is_its_recursion(group):
    engine = regression(ema_decay=0.9)
    steps(engine, 0, STEPS)
    _, _, weights = plain(STEPS)
    torch.manual_seed(0)
    average = [p.detach().clone() for p in Regression().parameters()]
    for step, now in enumerate(weights):
        decay = min(0.9, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * w for a, w in zip(average, now, strict=True)]
    trained = [p.detach().clone() for p in engine.module.parameters()]
    with engine.averaged():
        for found, wanted in zip(engine.module.parameters(), average, strict=True):
            torch.testing.assert_close(found.data, wanted, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(engine.module.parameters(), trained, strict=True))
    state = engine.state_dict()
    torch.testing.assert_close(state["net.0.weight"], average[0], rtol=1e-4, atol=1e-6)


def test_accumulated_passes_are_one_step(group):
    torch.manual_seed(0)
    engine = Engine(Regression(), OPTIMIZER, EngineConfig(zero_stage=1), STEPS, 4, accumulate=2)
    for step in range(STEPS):
        facts = []
        for half in (slice(0, 4), slice(4, 8)):
            x, y = example(step)
            loss, _ = engine(x[half], y[half])
            engine.backward(loss)
            facts.append(engine.step(step))
        assert facts[0] == {} and facts[1]["lr"] == OPTIMIZER.lr_at(step, STEPS)
    module, _, _ = plain(STEPS)
    for found, wanted in zip(engine.module.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def scale_of(name: str) -> float:
    """The first layer at a quarter of the rate, the norm frozen, the last layer at the schedule's."""
    return {"net.0": 0.25, "net.1": 0.0, "net.3": 1.0}[name.rpartition(".")[0]]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_parts_have_learning_rates_of_their_own_and_can_be_frozen(group, tmp_path, zero_stage):
    torch.manual_seed(0)
    module = Regression()
    layers = dict(module.net.named_children())
    layers["1"].requires_grad_(False)
    adam = torch.optim.AdamW(
        [
            {"params": [getattr(layers[at], name)], "weight_decay": decay, "scale": scale}
            for at, scale in (("0", 0.25), ("3", 1.0))
            for name, decay in (("weight", 0.1), ("bias", 0.0))
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    norms = []
    for step in range(STEPS):
        for entry in adam.param_groups:
            entry["lr"] = OPTIMIZER.lr_at(step, STEPS) * entry["scale"]
        adam.zero_grad()
        module(*example(step))[0].backward()
        norms.append(float(nn.utils.clip_grad_norm_([p for p in module.parameters() if p.requires_grad], 0.5)))
        adam.step()

    def build() -> Engine:
        torch.manual_seed(0)
        return Engine(
            Regression(), OPTIMIZER, EngineConfig(zero_stage=zero_stage, ema_decay=0.9), STEPS, 8, lr_scale=scale_of
        )

    engine = build()
    logs = steps(engine, 0, 5)
    checkpoint.save(str(tmp_path), 5, {"model": engine}, {}, keep=1)
    resumed = build()
    checkpoint.load(checkpoint.latest(str(tmp_path)), {"model": resumed})
    rest = steps(engine, 5, STEPS)
    assert steps(resumed, 5, STEPS) == rest
    assert [log["grad_norm"] for log in logs + rest] == pytest.approx(norms, rel=1e-4)
    trained = engine.state_dict(average=False)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-6)
    again = resumed.state_dict()
    for name, value in engine.state_dict().items():  # the average of a frozen part is the part itself
        assert torch.equal(again[name], value), name
    assert torch.equal(again["net.1.weight"], torch.ones(16)) and torch.equal(again["net.1.bias"], torch.zeros(16))
    with pytest.raises(ValueError, match="lr_scale"):
        Engine(Regression(), OPTIMIZER, EngineConfig(), STEPS, 8, lr_scale=lambda name: 0.0)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_weight_decay_does_not_follow_a_factor_of_the_rate(group, zero_stage):
    """As muP has it, where a part has a multiple of its own besides, which decay does follow."""
    factors = {"net.0.weight": 0.25, "net.3.weight": 0.5}
    torch.manual_seed(0)
    module = Regression()
    adam = torch.optim.AdamW(
        [
            {"params": [p], "name": name, "weight_decay": (0.1 if p.ndim > 1 else 0.0) / factors.get(name, 1.0)}
            for name, p in module.named_parameters()
        ],
        betas=(0.9, 0.95),
    )
    for step in range(STEPS):
        for entry in adam.param_groups:
            entry["lr"] = OPTIMIZER.lr_at(step, STEPS) * 0.5 * factors.get(entry["name"], 1.0)
        adam.zero_grad()
        module(*example(step))[0].backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        adam.step()
    torch.manual_seed(0)
    engine = Engine(
        Regression(),
        OPTIMIZER,
        EngineConfig(zero_stage=zero_stage),
        STEPS,
        8,
        lr_scale=lambda name: 0.5,
        rate_factor=lambda name: factors.get(name, 1.0),
    )
    steps(engine, 0, STEPS)
    trained = engine.state_dict()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-6)


def layer(name: str) -> str:
    return {"0": "first", "1": "norm", "3": "last"}[name.split(".")[1]]


@pytest.mark.parametrize(
    "fields",
    [
        {"zero_stage": 0},
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 1, "offload": True},
        {"zero_stage": 2, "offload": True},
        {"zero_stage": 3, "offload": True},
    ],
    ids=str,
)
def test_each_part_has_the_norm_of_its_own_gradient_before_clipping(group, fields):
    torch.manual_seed(0)
    module = Regression()
    engine = Engine(Regression(), OPTIMIZER, EngineConfig(**fields), STEPS, 4, 2, part_of=layer)
    module.load_state_dict(engine.state_dict())
    for step in range(2):
        module.zero_grad()
        if step:
            module.load_state_dict(engine.state_dict())
        facts = []
        for half in (slice(0, 4), slice(4, 8)):
            x, y = (part[half] for part in example(step))
            (module(x, y)[0] / 2).backward()
            engine.backward(engine(x, y)[0])
            facts.append(engine.step(step, part_norms=True))
        wanted: dict[str, float] = {}
        for name, p in module.named_parameters():
            wanted[layer(name)] = wanted.get(layer(name), 0.0) + float(p.grad.square().sum())
        found = {name: value for name, value in facts[1].items() if name not in ("lr", "grad_norm")}
        assert facts[0] == {} and found == pytest.approx(
            {f"grad_norm_{name}": value**0.5 for name, value in wanted.items()}, rel=1e-4
        )
        assert facts[1]["grad_norm"] == pytest.approx(sum(wanted.values()) ** 0.5, rel=1e-4)
    assert not any(name.startswith("grad_norm_") for name in steps(regression(), 0, 1)[0])


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_gradient_norm_is_logged_with_and_without_clipping(group, clip):
    for zero_stage in (0, 1, 2):
        torch.manual_seed(0)
        engine = Engine(
            Regression(),
            OPTIMIZER.model_copy(update={"grad_clip": clip}),
            EngineConfig(zero_stage=zero_stage),
            STEPS,
            8,
        )
        torch.manual_seed(0)
        module = Regression()
        module(*example(0))[0].backward()
        norm = torch.cat([p.grad.flatten() for p in module.parameters()]).norm()
        assert steps(engine, 0, 1)[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_bf16_runs_the_products_in_bf16_and_keeps_fp32_weights(group):
    engine = regression(precision="bf16", zero_stage=1)
    with engine.autocast():
        assert engine.module.net[0](example(0)[0]).dtype == torch.bfloat16
    logs = steps(engine, 0, STEPS)
    assert [log["loss"] for log in logs] == pytest.approx([log["loss"] for log in plain(STEPS)[1]], rel=0.05)
    assert all(value.dtype != torch.bfloat16 for value in engine.state_dict().values())


def test_the_schedule():
    config = OptimizerConfig(lr=2.0, warmup_steps=4, final_lr_ratio=0.1)
    assert [config.lr_at(step, 24) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    for step in range(4, 24):
        expected = 0.2 + 1.8 * 0.5 * (1 + math.cos(math.pi * (step - 4) / 20))
        assert config.lr_at(step, 24) == pytest.approx(expected)
    flat = OptimizerConfig(lr=2.0, warmup_steps=0, schedule="constant")
    assert {flat.lr_at(step, 24) for step in range(24)} == {2.0}


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_checkpoint_goes_on_bit_for_bit(group, tmp_path, monkeypatch, zero_stage, place):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    state = str(tmp_path / "state") if place == "disk" else f"memory://training-{os.getpid()}-{zero_stage}"
    straight = regression(zero_stage=zero_stage, ema_decay=0.9)
    steps(straight, 0, 5)
    checkpoint.save(state, 5, {"model": straight}, {"window": 3}, keep=2)
    expected = steps(straight, 5, STEPS)
    torch.manual_seed(99)
    resumed = Engine(Regression(), OPTIMIZER, EngineConfig(zero_stage=zero_stage, ema_decay=0.9), STEPS, 8)
    found = checkpoint.latest(state)
    assert (found["step"], found["ranks"], found["position"]) == (5, 1, {"window": 3})
    checkpoint.load(found, {"model": resumed})
    assert steps(resumed, 5, STEPS) == expected
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(straight.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- checkpoints ----


def test_only_complete_checkpoints_count_and_the_newest_are_kept(group, tmp_path):
    state, engine = str(tmp_path / "state"), regression()
    assert checkpoint.latest(state) is None
    for step in (2, 4, 6, 8):
        steps(engine, step - 2, step)
        checkpoint.save(state, step, {"model": engine}, {"step": step}, keep=2)
    folder = tmp_path / "state" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == [
        "step-00000006",
        "step-00000006.json",
        "step-00000008",
        "step-00000008.json",
    ]
    (folder / "step-00000010" / "model").mkdir(parents=True)  # a process was killed while it saved
    assert checkpoint.latest(state)["step"] == 8
    (folder / "step-00000008.json").unlink()
    assert checkpoint.latest(state)["step"] == 6


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_checkpoint_counts_when_its_last_file_is_there_and_not_before(group, tmp_path, monkeypatch, place):
    """While any of its engines is written, the newest is the one before."""
    state = str(tmp_path / "state") if place == "local" else f"memory://counts-{os.getpid()}"
    engines, seen = {"model": regression(), "critic": regression()}, []

    def looking(write):
        def look(*arguments, **named):
            seen.append(checkpoint.latest(state))
            index = write(*arguments, **named)
            seen.append(checkpoint.latest(state))
            return index

        return look

    monkeypatch.setattr(tensors, "write", looking(tensors.write))
    checkpoint.save(state, 2, engines, {}, keep=1)
    assert seen == [None] * 4
    checkpoint.save(state, 4, engines, {}, keep=1)
    assert [found["step"] for found in seen[4:]] == [2] * 4 and checkpoint.latest(state)["step"] == 4


def test_a_checkpoint_can_be_moved(group, tmp_path):
    engine = regression()
    steps(engine, 0, 2)
    checkpoint.save(str(tmp_path / "here"), 2, {"model": engine}, {}, keep=1)
    weights = engine.state_dict()
    (tmp_path / "here").rename(tmp_path / "there")
    steps(engine, 2, 4)
    found = checkpoint.latest(str(tmp_path / "there"))
    checkpoint.load(found, {"model": engine})
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), engine.state_dict().values(), strict=True))
    with pytest.raises(OmniLoomError, match="holds no checkpoint of 'critic'"):
        checkpoint.load(found, {"critic": engine})


def test_a_step_that_is_trained_again_is_not_taken_from_the_cache(group, tmp_path, monkeypatch):
    monkeypatch.setenv("OMNILOOM_CACHE", str(tmp_path / "cache"))
    state, engine = f"memory://again-{os.getpid()}", regression()
    for _ in range(2):
        steps(engine, 0, 2)
        checkpoint.save(state, 2, {"model": engine}, {}, keep=1)
        weights = engine.state_dict()
        checkpoint.load(checkpoint.latest(state), {"model": engine})
        assert torch.equal(engine.state_dict()["net.0.weight"], weights["net.0.weight"])


# ---- the loop ----


class Recorder:
    """A trainer and its loader that keep what they are told."""

    unit, amounts = "images", ()

    def __init__(self, tmp_path: Path, **workers):
        self.rows, self.calls, self.trained, self.sought, self.kept, self.closed = [], [], [], [], [], 0
        self.engines = {}
        self.workers = WorkersConfig(count=1, **workers)
        self.state = str(tmp_path / "state")
        self.values = lambda step: {"loss": float(step)}

    def loop(self, steps: int, **fields) -> Loop:
        return Loop(steps, self.workers, self, self, self.state, Progress("training"), validate_every=4, **fields)

    def train_step(self, step, batch):
        assert batch == f"batch {step}"
        self.trained.append(step)
        return self.values(step), 10

    def validate(self, step):
        self.calls.append(step)

    def log(self, metrics, step, units):
        assert metrics.pop("images_per_second") > 0
        self.rows.append((step, metrics, units))

    def keep(self):
        self.kept.append(len(self.rows))

    def rewind(self, step):
        self.calls.append(f"rewound to {step}")

    @property
    def position(self):
        return {"at": self.trained[-1] + 1}

    def seek(self, position):
        self.sought.append(position)

    def at(self, step):
        return f"batch {step}"

    def describe(self, step):
        return f"images {step}a, {step}b"

    def close(self):
        self.closed += 1


def test_the_loop_logs_means_over_its_window(group, tmp_path):
    recorder = Recorder(tmp_path, log_every=3)
    last = recorder.loop(8).run()
    assert recorder.rows == [(3, {"loss": 1.0}, 30.0), (6, {"loss": 4.0}, 60.0), (8, {"loss": 6.5}, 80.0)]
    assert recorder.calls == ["rewound to 0", 4, 8] and recorder.closed == 1 and recorder.sought == []
    assert last["units"] == 80.0 and last["loss"] == 6.5 and last["seconds"] > 0


def test_a_value_that_only_some_steps_have_is_averaged_over_those(group, tmp_path):
    recorder = Recorder(tmp_path, log_every=4)
    recorder.values = lambda step: {"image_loss" if step % 2 else "video_loss": float(step)}
    recorder.loop(4).run()
    assert recorder.rows == [(4, {"video_loss": 1.0, "image_loss": 2.0}, 40.0)]


def test_amounts_are_added_up_and_logged_by_the_second_of_training(group, tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("omniloom.infra.training.loop.time.perf_counter", lambda: float(next(clock)))
    rows = []
    recorder = Recorder(tmp_path, log_every=3)
    recorder.amounts, recorder.log = ("flops",), lambda metrics, step, units: rows.append((step, metrics))
    recorder.values = lambda step: {"loss": 1.0, "flops": 10.0 + step}
    recorder.loop(5).run()  # every look at the clock is a second: a step takes one, what validates takes some as well
    assert rows == [
        (3, {"loss": 1.0, "flops_per_second": 11.0, "images_per_second": 10.0}),
        (5, {"loss": 1.0, "flops_per_second": 13.5, "images_per_second": 10.0}),
    ]
    assert [done for done in range(1, 6) if recorder.workers.logs(done, 5)] == [3, 5]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_loop_stops_where_a_value_is_not_finite(group, tmp_path, value):
    recorder = Recorder(tmp_path)
    recorder.values = lambda step: {"loss": 1.0, "grad_norm": value if step == 5 else 1.0}
    with pytest.raises(TrainingDiverged, match=rf"step 5: grad_norm is {value}; batch: images 5a, 5b"):
        recorder.loop(8).run()
    assert recorder.trained == [0, 1, 2, 3, 4, 5] and recorder.closed == 1


def test_an_interrupted_loop_logs_the_rows_of_an_unbroken_one(group, tmp_path):
    """Whatever the checkpoints' distance is to the logs': every unit is counted once."""
    fields = {"log_every": 4, "checkpoint_every": 3}
    straight = Recorder(tmp_path / "straight", **fields)
    straight.loop(11).run()
    broken = Recorder(tmp_path / "broken", **fields)
    broken.values = lambda step: {"loss": float(step) if step != 8 else math.nan}
    with pytest.raises(TrainingDiverged):
        broken.loop(11).run()
    found = checkpoint.latest(broken.state)
    assert found["step"] == 6 and found["position"] == {"at": 6, "units": 60.0, "last": {"loss": 4.5}}
    resumed = Recorder(tmp_path / "broken", **fields)
    resumed.loop(11, validate_first=True).run()
    assert resumed.sought == [found["position"]] and resumed.trained == [6, 7, 8, 9, 10]
    assert resumed.calls == ["rewound to 6", 8, 11]  # what precedes step 0 was validated by the first attempt
    assert [row for row in broken.rows if row[0] <= 6] + resumed.rows == straight.rows


def test_what_training_starts_from_is_validated_where_the_stage_says_so(group, tmp_path):
    for first in (False, True):
        recorder = Recorder(tmp_path / str(first))
        recorder.loop(5, validate_first=first).run()
        assert recorder.calls == ["rewound to 0", *([0] if first else []), 4, 5]


def test_a_damaged_checkpoint_costs_its_steps_and_is_told(group, tmp_path):
    fields = {"log_every": 2, "checkpoint_every": 2}
    Recorder(tmp_path, **fields).loop(6).run()
    Path(tmp_path, "state", "checkpoints", "step-00000006.json").write_text("{")
    again, board = Recorder(tmp_path, **fields), ProgressBoard()
    loop = again.loop(6)
    loop.progress = Progress("training", board)
    assert loop.run()["units"] == 60.0
    assert again.trained == [4, 5] and again.calls[0] == "rewound to 4"
    assert "step-00000006.json" in board.read()["training"]["notes"][0]


@pytest.mark.parametrize("at", range(7))
def test_a_training_that_is_told_to_end_loses_no_step_and_no_row(group, tmp_path, at):
    """Told in any step, between two logged rows too: a checkpoint of that step, and the curve of who was not told."""
    fields = {"log_every": 3, "checkpoint_every": 5}
    straight = Recorder(tmp_path / "straight", **fields)
    straight.loop(8).run()
    told = Recorder(tmp_path / "told", **fields)
    told.values = lambda step: (
        stopping.ask("a signal") or {"loss": float(step)} if step == at else {"loss": float(step)}
    )
    try:
        with pytest.raises(stopping.Stopped, match=rf"after step {at + 1} of 8 \(a signal\), with a checkpoint"):
            told.loop(8).run()
    finally:
        stopping.clear()
    assert told.trained == list(range(at + 1)) and checkpoint.newest_step(told.state) == at + 1
    again = Recorder(tmp_path / "told", **fields)
    last = again.loop(8).run()
    assert told.trained + again.trained == straight.trained
    assert told.rows + again.rows == straight.rows and last["units"] == 80.0


def test_a_training_that_is_told_in_its_last_step_ends_as_it_would(group, tmp_path):
    recorder = Recorder(tmp_path, log_every=3)
    recorder.values = lambda step: (stopping.ask("a signal") if step == 4 else None) or {"loss": 0.0}
    try:
        assert recorder.loop(5).run()["units"] == 50.0
    finally:
        stopping.clear()


def test_an_attempt_that_was_given_up_saves_no_further_checkpoint(group, tmp_path):
    """The group was started again while a rank of the old one still trains, as one that was stopped and woke."""
    from omniloom.infra.lease import Holder, LeaseLost

    recorder = Recorder(tmp_path, log_every=10, checkpoint_every=2)
    Holder.new_attempt(recorder.state)
    values = recorder.values
    recorder.values = lambda step: (Holder.new_attempt(recorder.state) if step == 3 else None) or values(step)
    with pytest.raises(LeaseLost):
        recorder.loop(9).run()
    assert checkpoint.newest_step(recorder.state) < 4, "that of step 2 may have been under way"


# ---- several ranks ----


def unified_rows(step: int) -> list[list[list[Segment]]]:
    """Four rows of all objectives and of text, whose targets differ in number and kind, so that a mean over ranks
    is no mean over targets."""
    rng, specials = np.random.default_rng(step), UNIFIED.specials

    def picture(name: str, grid: tuple[int, int, int]) -> tuple[np.ndarray, tuple[int, int, int]]:
        count = math.prod(grid)
        if name.endswith("code"):
            return rng.integers(0, 16, count), grid
        return rng.normal(size=(count, 3 if "latent" in name else 12)).astype(np.float32), grid

    def drawn(name: str, features: bool = False) -> list[Segment]:
        document = text_to_visual(rng.integers(6, 40, 2), *picture(name, (1, 2, 2)), specials, objective=name)
        if features:
            document[1].features = rng.normal(size=(4, FEATURES))
        return document

    def described(name: str) -> list[Segment]:
        return visual_to_text(*picture(name, (1, 1, 3)), rng.integers(6, 40, 4), specials, name)

    texts = [plain_text(rng.integers(6, 40, 3 + 5 * row), specials) for row in range(4)]
    return [
        [drawn("latent_diffusion", features=True), texts[0], drawn("pixel_diffusion")],
        [texts[3], drawn("next_latent")],
        [drawn("next_code"), described("latent_diffusion"), drawn("masked_code")],
        [drawn("masked_code"), described("next_code"), texts[1], drawn("latent_diffusion")],
    ]


def train_unified(zero_stage: int, count: int, folder: str | None = None) -> dict:
    """`count` steps on this rank's share of four rows: losses, norms of the gradient by part, weights. Saved after half
    of them where a folder is given."""
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def build() -> Engine:
        torch.manual_seed(1)
        objective = UnifiedObjective(
            UnifiedModel(UNIFIED),
            DiffusionConfig(),
            objectives=tuple(OBJECTIVES),
            alignment=FeatureAlignment(UNIFIED.width, FEATURES, inner=16),
        )
        return Engine(
            objective, OPTIMIZER, EngineConfig(zero_stage=zero_stage, ema_decay=0.9), count, 4 // ranks, part_of=part_of
        )

    def run(engine: Engine, start: int, stop: int) -> list[dict[str, float]]:
        found = []
        for step in range(start, stop):
            mine = list(range(4))[rank * 4 // ranks : (rank + 1) * 4 // ranks]
            batch = collate([unified_rows(step)[row] for row in mine], LENGTH, UNIFIED, feature_dim=FEATURES)
            totals = reduce_sum(*batch.targets.values())
            counts = dict(zip(batch.targets, (total / ranks for total in totals), strict=True))
            loss, logs = engine(batch, [100 * step + row for row in mine], counts=counts)
            engine.backward(loss)
            facts = engine.step(step, part_norms=True)
            found.append(
                {
                    "loss": reduce_sum(float(logs["loss"]))[0] / ranks,
                    **{name: float(facts[f"grad_norm_{name}"]) for name in ("text", "visual", "backbone")},
                }
            )
        return found

    engine = build()
    curve = run(engine, 0, count // 2)
    if folder:
        checkpoint.save(folder, count // 2, {"model": engine}, {}, keep=1)
    # What validation does: all ranks look at the averaged weights, and go on.
    with engine.evaluated() as module:
        module.eval()
        with torch.no_grad():
            first, second = (float(module(collate(unified_rows(0), LENGTH, UNIFIED), 5)[0]) for _ in range(2))
            # A part of the module alone, as sampling uses it: ZeRO-3 gathers its weights too.
            assert module.model.text_logits(torch.zeros(1, 4, dtype=torch.int64)).isfinite().all()
        assert first == second
        module.train()
    curve += run(engine, count // 2, count)
    state = engine.state_dict()
    if folder:
        resumed = build()
        checkpoint.load(checkpoint.latest(folder), {"model": resumed})
        assert run(resumed, count // 2, count) == curve[count // 2 :]
        for (name, a), b in zip(state.items(), resumed.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    return {"curve": curve, "state": state}


def _rank(rank: int, ranks: int, folder: str, path: list[str]) -> None:
    sys.path[:0] = path
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    found = {stage: train_unified(stage, UNIFIED_STEPS, f"{folder}/state-{stage}") for stage in range(4)}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_rank, (2, str(folder), sys.path), nprocs=2)
    return torch.load(folder / "found.pt")


@pytest.mark.slow
def test_zero_stages_and_ranks_give_the_same_losses_and_weights(group, two_ranks, capsys):
    """Of all four objectives mixed, with features to align with that the second of two ranks never has, on one rank and
    on two, and the same norms of each part's gradient. In each of them a checkpoint goes on bit for bit, and all
    ranks can use the averaged model in between."""
    plain = train_unified(0, UNIFIED_STEPS)
    assert all(value > 0 for row in plain["curve"] for value in row.values())
    runs = {
        f"ZeRO {stage}, {ranks} rank{'s' * (ranks > 1)}": two_ranks[stage]
        if ranks == 2
        else train_unified(stage, UNIFIED_STEPS)
        for ranks in (1, 2)
        for stage in range(4)
    }
    apart = {}
    for name, run in runs.items():
        apart[name] = max(abs(a["loss"] - b["loss"]) for a, b in zip(run["curve"], plain["curve"], strict=True))
        for found, wanted in zip(run["curve"], plain["curve"], strict=True):
            assert found == pytest.approx(wanted, rel=1e-3, abs=1e-5), name
        assert set(run["state"]) == set(plain["state"])
        for weight, value in plain["state"].items():
            torch.testing.assert_close(run["state"][weight], value, rtol=1e-3, atol=2e-5)
    with capsys.disabled():
        print(
            f"\nlargest difference of a loss in {UNIFIED_STEPS} steps:",
            ", ".join(f"{name} {value:.1e}" for name, value in apart.items()),
        )
    assert max(apart.values()) < 1e-5


def test_the_objective_falls_on_a_fixed_batch(group):
    torch.manual_seed(0)
    count = 100
    objective = UnifiedObjective(UnifiedModel(UNIFIED), DiffusionConfig(), objectives=tuple(OBJECTIVES))
    engine = Engine(objective, OptimizerConfig(lr=1e-2, warmup_steps=5), EngineConfig(zero_stage=1), count, 4)
    batch, logs = collate(unified_rows(0), LENGTH, UNIFIED), []
    for step in range(count):
        loss, found = engine(batch, [1, 2, 3, 4])
        engine.backward(loss)
        engine.step(step)
        logs.append({name: float(value) for name, value in found.items()})
    assert logs[-1]["text_loss"] < 0.2 * logs[0]["text_loss"]
    for name in ("latent_diffusion", "next_code"):
        assert logs[-1][f"{name}_loss"] < 0.5 * logs[0][f"{name}_loss"]


def test_a_worker_whose_run_is_gone_saves_no_further_checkpoint(group, tmp_path):
    """Another run has taken the work over while this one's workers, which their killed driver left behind, train."""
    from omniloom.infra.lease import Holder, Lease, LeaseLost

    recorder = Recorder(tmp_path, log_every=10, checkpoint_every=2)
    Holder.write(recorder.state, Lease("x").owner)
    values = recorder.values

    def taken_over(step):
        if step == 3:
            while not checkpoint.latest(recorder.state):  # it is saved in the background
                time.sleep(0.01)
            Holder.write(recorder.state, Lease("x").owner)
        return values(step)

    recorder.values = taken_over
    with pytest.raises(LeaseLost):
        recorder.loop(9).run()
    assert recorder.trained == [0, 1, 2, 3] and checkpoint.latest(recorder.state)["step"] == 2
