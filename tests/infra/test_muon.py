"""Muon for the matrices of blocks: against torch's own beside AdamW, under ZeRO 0 and 1; divided over ranks as on one;
and going on from a checkpoint under other ranks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from omniloom.infra.training import checkpoint
from omniloom.infra.training.config import BlocksOptimizerConfig, EngineConfig, MuonConfig, OptimizerConfig
from omniloom.infra.training.muon import orthogonal

STEPS, HALF, ROWS = 6, 3, 12
CONFIG = BlocksOptimizerConfig(lr=2e-2, warmup_steps=0, weight_decay=0.1, grad_clip=0.7, muon=MuonConfig(momentum=0.9))
STAGES = [0, 1]


class Net(nn.Module):
    """Matrices that are wide, tall and square, of odd sizes so that shards end within them; the last block has no
    gradient in odd steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 11)
        self.blocks = nn.ModuleList([nn.Linear(11, 7), nn.Linear(7, 11), nn.Linear(11, 11)])
        self.head = nn.Linear(11, 3)

    def forward(self, x: torch.Tensor, more: bool) -> torch.Tensor:
        x = self.blocks[1](self.blocks[0](self.embed(x)).tanh())
        return self.head(self.blocks[2](x).tanh() if more else x).square().mean()


def rows(step: int) -> torch.Tensor:
    return torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(step)) * 3


def is_in_block(name: str) -> bool:
    return name.startswith("blocks.")


def build(stage: int, seed: int = 0):
    from omniloom.infra.training.engine import Engine

    torch.manual_seed(seed)
    config = EngineConfig(zero_stage=stage, ema_decay=0.5)
    return Engine(Net(), CONFIG, config, STEPS, ROWS, is_in_block=is_in_block)


def train(engine, start: int, stop: int) -> dict[str, torch.Tensor]:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for step in range(start, stop):
        engine.backward(engine(rows(step).chunk(ranks)[rank], step % 2 == 0))
        engine.step(step)
    return engine.state_dict(average=False)


def plain() -> dict[str, torch.Tensor]:
    """The same with torch's Muon beside its AdamW."""
    torch.manual_seed(0)
    net = Net()
    named = dict(net.named_parameters())
    matrices = [p for name, p in named.items() if is_in_block(name) and p.ndim == 2]
    others = [p for name, p in named.items() if not is_in_block(name) or p.ndim != 2]
    muon = torch.optim.Muon(matrices, CONFIG.lr, CONFIG.weight_decay, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    decays = [
        {"params": [p for p in others if p.ndim == 2], "weight_decay": CONFIG.weight_decay},
        {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(decays, CONFIG.lr, CONFIG.betas, CONFIG.eps)
    for step in range(STEPS):
        for optimizer in (muon, adam):
            for group in optimizer.param_groups:
                group["lr"] = CONFIG.lr_at(step, STEPS)
            optimizer.zero_grad(set_to_none=False)
        net(rows(step), step % 2 == 0).backward()
        for p in net.parameters():  # what has no gradient in a step has one of zeros
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        nn.utils.clip_grad_norm_(net.parameters(), CONFIG.grad_clip)
        muon.step()
        adam.step()
    return {name: p.detach() for name, p in named.items()}


def close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # Gradients that differ in their last digit round apart in bf16, by 2^-8 of an update.
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=STEPS * CONFIG.lr * 2**-8, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_matrices_of_blocks_train_as_with_torchs_muon_and_the_rest_with_adamw(process_group, stage):
    close(train(build(stage), 0, STEPS), plain())


def test_singular_values_come_near_one_and_vectors_stay():
    for shape in ((8, 30), (30, 8)):
        matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 5
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        turned = u.T @ orthogonal(matrix).float() @ v.T
        values = turned.diagonal()
        assert 0.6 < values.min() and values.max() < 1.3
        assert (turned - values.diag()).abs().max() < 0.05


def _rank(rank: int, ranks: int, folder: str, path: list[str]) -> None:
    sys.path[:0] = path
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "DS_ACCELERATOR": "cpu"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store-{ranks}", rank=rank, world_size=ranks)
    for stage in STAGES:
        if ranks == 3:
            engine = build(stage)
            train(engine, 0, HALF)
            checkpoint.save(f"{folder}/{stage}", HALF, {"model": engine}, {}, keep=1)
            found = {stage: train(engine, HALF, STEPS)}
        else:
            found = {}
            for now in STAGES:
                engine = build(now, seed=9)
                checkpoint.load(checkpoint.latest(f"{folder}/{stage}"), {"model": engine})
                found[now] = train(engine, HALF, STEPS)
        if rank == 0:
            torch.save(found, f"{folder}/{ranks}-{stage}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_ranks_train_as_one_and_two_go_on_from_them_under_either_stage(tmp_path):
    wanted = plain()
    for ranks in (3, 2):
        torch.multiprocessing.spawn(_rank, (ranks, str(tmp_path), sys.path), nprocs=ranks)
        for stage in STAGES:
            for found in torch.load(Path(tmp_path, f"{ranks}-{stage}.pt")).values():
                close(found, wanted)


def test_muon_without_a_matrix_for_it_is_refused():
    from omniloom.infra.training.engine import Engine

    with pytest.raises(ValueError, match="optimizer.muon: no matrix of a block is trained"):
        Engine(Net(), CONFIG, EngineConfig(zero_stage=0), STEPS, ROWS)
    assert CONFIG.by_elements == OptimizerConfig(lr=2e-2, warmup_steps=0, weight_decay=0.1, grad_clip=0.7)
