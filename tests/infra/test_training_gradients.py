"""Two ranks that share the rows of a step against one that has all: under every ZeRO stage, and with the flat gradients
of ZeRO 1 that travel as fp32 and as bf16."""

from __future__ import annotations

import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from omniloom.infra.training.config import EngineConfig, OptimizerConfig

STEPS, ROWS = 4, 8
CONFIG = OptimizerConfig(lr=1e-2, warmup_steps=0, grad_clip=0.3, weight_decay=0.5)
# By step the rows that go through it: of two ranks those of both passes, of the second, of none, of the first.
LAST_LAYER = [[0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 6, 7], [], [0, 4]]


class Net(nn.Module):
    """As odd in size as to leave padding; its last layer has no gradient in some passes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.extra = nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, through: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x).tanh())
        if through.any():
            y = torch.where(through[:, None], self.extra(y), y)
        return y.square().mean()


def passes(step: int, rank: int, ranks: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A rank's two passes of a step: rows, and which of them go through the last layer."""
    rows = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(step)) * 3
    through = torch.zeros(ROWS, dtype=torch.bool)
    through[LAST_LAYER[step]] = True
    mine = [of_all.chunk(ranks)[rank].chunk(2) for of_all in (rows, through)]
    return list(zip(*mine, strict=True))


STAGES = [(0, False), (1, False), (1, True), (2, False), (2, True), (3, False), (3, True)]  # with its offload


def train(
    stage: int = 1, offload: bool = False, communication: str = "fp32"
) -> tuple[dict[str, torch.Tensor], list[float]]:
    from omniloom.infra.training.engine import Engine

    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    config = EngineConfig(zero_stage=stage, offload=offload, communication=communication)
    engine = Engine(Net(), CONFIG, config, STEPS, ROWS // ranks // 2, accumulate=2)
    norms = []
    for step in range(STEPS):
        for micro in passes(step, rank, ranks):
            engine.backward(engine(*micro))
            found = engine.step(step)
        norms.append(float(found["grad_norm"]))
    return engine.state_dict(), norms


def _rank(rank: int, folder: str, path: list[str]) -> None:
    sys.path[:0] = path
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    found = {how: train(*how) for how in STAGES} | {"bf16": train(communication="bf16")}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("stage, offload", STAGES)
def test_what_has_no_gradient_in_a_step_is_not_updated_by_that_of_an_earlier_one(process_group, stage, offload):
    """Without ZeRO it is the optimizer's own step, on gradients that PyTorch made."""
    torch.manual_seed(0)
    net = Net()
    others, matrices = ([p for p in net.parameters() if (p.ndim > 1) is big] for big in (False, True))
    groups = [{"params": matrices, "weight_decay": CONFIG.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=CONFIG.lr, betas=CONFIG.betas, eps=CONFIG.eps)
    for step in range(STEPS):
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for micro in passes(step, 0, 1):
            (net(*micro) / 2).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CONFIG.grad_clip)
        for group in adam.param_groups:
            group["lr"] = CONFIG.lr_at(step, STEPS)
        adam.step()
    found, _ = train(stage, offload)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_ranks_train_as_one_and_bf16_rounds_each_gradient_once(process_group, tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path), sys.path), nprocs=2)
    found, (weights, norms) = torch.load(tmp_path / "found.pt"), train()
    for how, (_, of_steps) in found.items():
        assert of_steps == pytest.approx(norms, rel=4e-3 if how == "bf16" else 1e-6), how
    for name, value in weights.items():
        for how in STAGES:
            torch.testing.assert_close(found[how][0][name], value, rtol=1e-5, atol=1e-6, msg=f"ZeRO {how}: {name}")
        torch.testing.assert_close(found["bf16"][0][name], value, rtol=0, atol=STEPS * 2 * CONFIG.lr)
    assert any(not torch.equal(value, found["bf16"][0][name]) for name, value in weights.items())


@pytest.mark.parametrize("fields", [{"zero_stage": 0}, {"zero_stage": 2}, {"zero_stage": 3}, {"offload": True}])
def test_bf16_is_refused_where_deepspeed_would_add_up_in_it(fields):
    with pytest.raises(ValueError, match="communication: bf16 needs zero_stage 1 without offload"):
        EngineConfig(communication="bf16", **fields)
