"""Gradients in flat buffers under ZeRO 1: two ranks that share the rows of a step against one that has all, with
gradients that travel as fp32 and as bf16."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from omniloom.infra.training.config import EngineConfig, OptimizerConfig

STEPS, ROWS = 4, 8
CONFIG = OptimizerConfig(lr=1e-2, warmup_steps=0, grad_clip=0.3)


class Net(nn.Module):
    """As odd in size as to leave padding; its last layer has no gradient in odd steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.extra = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, more: bool) -> torch.Tensor:
        y = self.second(self.first(x).tanh())
        return (self.extra(y) if more else y).square().mean()


def rows(step: int) -> torch.Tensor:
    return torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(step)) * 3


def train(communication: str) -> tuple[dict[str, torch.Tensor], list[float]]:
    from omniloom.infra.training.engine import Engine

    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    config = EngineConfig(zero_stage=1, communication=communication)
    engine = Engine(Net(), CONFIG, config, STEPS, ROWS // ranks // 2, accumulate=2)
    norms = []
    for step in range(STEPS):
        for micro in rows(step).chunk(ranks)[rank].chunk(2):
            engine.backward(engine(micro, step % 2 == 0))
            found = engine.step(step)
        norms.append(float(found["grad_norm"]))
    return engine.state_dict(), norms


def _rank(rank: int, folder: str, path: list[str]) -> None:
    sys.path[:0] = path
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    found = {name: train(name) for name in ("fp32", "bf16")}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_as_one_and_bf16_rounds_each_gradient_once(process_group, tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path), sys.path), nprocs=2)
    found, (weights, norms) = torch.load(tmp_path / "found.pt"), train("fp32")
    for name, tolerance in (("fp32", 1e-6), ("bf16", 4e-3)):
        assert found[name][1] == pytest.approx(norms, rel=tolerance)
    for name, value in weights.items():
        torch.testing.assert_close(found["fp32"][0][name], value, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["bf16"][0][name], value, rtol=0, atol=STEPS * 2 * CONFIG.lr)
    assert any(not torch.equal(value, found["bf16"][0][name]) for name, value in weights.items())


@pytest.mark.parametrize("fields", [{"zero_stage": 0}, {"zero_stage": 2}, {"zero_stage": 3}, {"offload": True}])
def test_bf16_is_refused_where_deepspeed_would_add_up_in_it(fields):
    with pytest.raises(ValueError, match="communication: bf16 needs zero_stage 1 without offload"):
        EngineConfig(communication="bf16", **fields)
