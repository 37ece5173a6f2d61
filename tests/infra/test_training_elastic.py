"""A training goes on from its checkpoint under any number of ranks, ZeRO stage, offload and accumulation."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from omniloom.infra.training import checkpoint
from omniloom.infra.training.config import EngineConfig, OptimizerConfig
from omniloom.infra.training.engine import Engine

ROWS, STEPS, HALF = 12, 6, 3
STAGES = [(0, False), (1, False), (1, True), (2, False), (3, False), (3, True)]


class Net(nn.Module):
    """Sizes that no number of ranks divides, a matrix above and others below what ZeRO-3 keeps whole, a frozen layer,
    a single number, a buffer that forward passes change, and one tensor under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(331, 331)
        self.frozen = nn.Linear(331, 331, bias=False)
        self.norm = nn.LayerNorm(331)
        self.last = nn.Linear(331, 3)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.also = self.norm.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("codes", torch.randn(7, 5))

    def forward(self, x, y):
        if self.training:
            self.seen += 1
        out = self.last(torch.tanh(self.norm(self.first(x) + self.frozen(x)) * self.also)) * self.scale
        loss = (out - y).square().mean()
        return loss, {"loss": loss.detach()}


def build(stage: int, offload: bool, accumulate: int, seed: int) -> Engine:
    torch.manual_seed(seed)
    ranks = dist.get_world_size()
    return Engine(
        Net(),
        OptimizerConfig(lr=3e-3, warmup_steps=2, grad_clip=0.5),
        EngineConfig(zero_stage=stage, offload=offload, ema_decay=0.9),
        STEPS,
        ROWS // ranks // accumulate,
        accumulate,
        lr_scale=lambda name: 0.0 if name.startswith("frozen") else 1.0,
    )


def train(engine: Engine, start: int, stop: int) -> list[float]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    curve = []
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(ROWS, 331, generator=generator)
        y = x[:, :3] * x[:, 3:4]
        total = torch.zeros(())
        size = ROWS // ranks // engine.accumulate
        for at in range(rank * ROWS // ranks, (rank + 1) * ROWS // ranks, size):
            loss, _ = engine(x[at : at + size], y[at : at + size])
            engine.backward(loss)
            engine.step(step)
            total += loss.detach() * size / ROWS
        dist.all_reduce(total)
        curve.append(float(total))
    return curve


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    return {
        **{f"average/{name}": value for name, value in engine.state_dict().items()},
        **{f"weight/{name}": value for name, value in engine.state_dict(average=False).items()},
    }


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], told: str) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if not name.endswith("seen"):  # each rank counts its own passes
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=f"{told}: {name}")


def _write(folder: Path) -> None:
    """Half of the training under each stage, saved; and the whole, for comparison."""
    for stage, offload in STAGES:
        engine = build(stage, offload, 1, seed=0)
        curve = train(engine, 0, HALF)
        checkpoint.save(f"{folder}/{stage}-{offload}", HALF, {"model": engine}, {}, keep=1)
        curve += train(engine, HALF, STEPS)
        if state := state_of(engine):
            torch.save((curve, state), f"{folder}/{stage}-{offload}.pt")


def _go_on(folder: Path) -> None:
    """From each of those under each stage: the same losses and weights, bit for bit where nothing is divided anew."""
    ranks = dist.get_world_size()
    for before, (now, accumulate) in itertools.product(STAGES, [(s, 1) for s in STAGES] + [((1, False), 2)]):
        if ROWS // ranks < accumulate:
            continue
        found = checkpoint.latest(f"{folder}/{before[0]}-{before[1]}")
        engine = build(*now, accumulate, seed=99)
        checkpoint.load(found, {"model": engine})
        curve, state = train(engine, HALF, STEPS), state_of(engine)
        told = f"{found['ranks']} ranks {before} -> {ranks} ranks {now}, accumulate {accumulate}"
        wanted, weights = torch.load(f"{folder}/{before[0]}-{before[1]}.pt")
        torch.testing.assert_close(torch.tensor(curve), torch.tensor(wanted[HALF:]), rtol=1e-5, atol=1e-6, msg=told)
        if state:
            close(state, weights, told)
        if (found["ranks"], before, accumulate) == (ranks, now, 1):
            assert curve == wanted[HALF:], told
            assert all(torch.equal(value, weights[name]) for name, value in state.items()), told


def _rank(rank: int, ranks: int, folder: str, path: list[str], what: str) -> None:
    sys.path[:0] = path
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store-{what}-{ranks}", rank=rank, world_size=ranks)
    {"write": _write, "go on": _go_on}[what](Path(folder))
    dist.destroy_process_group()


def on(ranks: int, folder: Path, what: str) -> None:
    torch.multiprocessing.spawn(_rank, (ranks, str(folder), sys.path, what), nprocs=ranks)


@pytest.mark.slow
@pytest.mark.parametrize("before, now", [(3, 2), (2, 4), (4, 1), (1, 2), (2, 2)], ids=str)
def test_a_training_goes_on_under_any_ranks_and_stage(tmp_path, before, now):
    on(before, tmp_path, "write")
    on(now, tmp_path, "go on")
