"""The codebooks inside the engine that trains them: starts and restarts stick under ZeRO, and resume is exact."""

from __future__ import annotations

import pytest
import torch
from quantizer_cases import CASES, build
from torch import nn

from omniloom.infra.training import checkpoint
from omniloom.infra.training.config import EngineConfig, OptimizerConfig
from omniloom.infra.training.engine import Engine

OPTIMIZER = OptimizerConfig(lr=2e-3, warmup_steps=0, weight_decay=0.5, grad_clip=1.0, schedule="constant")
STEPS = 12


class Autoencoder(nn.Module):
    """As the stages' objectives are: one forward pass gives the loss and what is logged."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.codebook = build(name, restart_dead_after=1)
        self.down = nn.Linear(6, self.codebook.input_dim)
        self.up = nn.Linear(self.codebook.dim, 6)

    def forward(self, x):
        out = self.codebook(self.down(x), update=True)
        loss = (self.up(out.z_q) - x).square().mean() + out.loss
        return loss, {name: float(value) for name, value in out.stats.items()}


def example(step: int) -> torch.Tensor:
    """Tokens about one of two places in turn, so that codes die."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(32, 6, generator=generator) * 0.3 + (1 if step % 6 < 3 else -1)


def fresh(name: str, zero_stage: int) -> Engine:
    torch.manual_seed(0)
    return Engine(Autoencoder(name).train(), OPTIMIZER, EngineConfig(zero_stage=zero_stage, ema_decay=0.9), STEPS, 32)


def codes_of(engine: Engine) -> torch.Tensor:
    """The codes as they are trained, not averaged."""
    module = Autoencoder("vq-gradient")
    module.load_state_dict(engine.state_dict(average=False))
    return module.codebook.codebook().detach()


def train(engine: Engine, start: int, stop: int) -> list[dict]:
    logs = []
    for step in range(start, stop):
        torch.manual_seed(step)
        loss, found = engine(example(step))
        engine.backward(loss)
        logs.append({"loss": float(loss.detach()), **found, **engine.step(step)})
    return logs


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_start_and_restart_outlive_the_optimizers_steps(process_group, zero_stage):
    """Under ZeRO the weights are rewritten from copies at every step: no code may fall back to where it was."""
    engine = fresh("vq-gradient", zero_stage)
    dead = 0.0
    for step in range(STEPS):
        loss, stats = engine(example(step))
        dead += stats["dead_codes"]
        placed = codes_of(engine)
        engine.backward(loss)
        engine.step(step)
        moved = (codes_of(engine) - placed).norm(dim=-1)
        assert moved.max() < 4 * OPTIMIZER.lr and (step == 0 or moved.max() > 0)
    assert dead > 32


def test_zero_stages_train_one_codebook(process_group):
    """And it is the one that plain torch trains."""
    torch.manual_seed(0)
    module = Autoencoder("vq-gradient").train()
    weights = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.5}, {"params": others, "weight_decay": 0.0}],
        lr=OPTIMIZER.lr,
        betas=OPTIMIZER.betas,
        eps=OPTIMIZER.eps,
    )
    for step in range(STEPS):
        loss, _ = module(example(step))
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        adam.step()
    expected = module.codebook.codebook().detach()
    for zero_stage in range(4):
        engine = fresh("vq-gradient", zero_stage)
        train(engine, 0, STEPS)
        torch.testing.assert_close(codes_of(engine), expected, rtol=1e-3, atol=1e-4)


class Still(nn.Module):
    """No gradient but zeros: what moves then is moved by weight decay alone."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = build("vq-gradient")
        self.codebook.offsets.data.normal_()
        self.weight = nn.Parameter(torch.ones(3, 3))

    def forward(self):
        return 0.0 * (self.codebook.codebook().sum() + self.weight.sum()), {}


def test_weight_decay_leaves_the_codes_alone(process_group):
    engine = Engine(Still(), OPTIMIZER, EngineConfig(zero_stage=1), STEPS, 1)
    before = engine.module.codebook.offsets.detach().clone()
    engine.backward(engine()[0])
    engine.step(0)
    assert torch.equal(engine.module.codebook.offsets, before) and (engine.module.weight < 1).all()


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_goes_on_bit_for_bit(process_group, tmp_path, name):
    straight = fresh(name, 1)
    train(straight, 0, 5)
    checkpoint.save(str(tmp_path), 5, {"model": straight}, {}, keep=1)
    expected = train(straight, 5, STEPS)
    torch.manual_seed(99)
    resumed = fresh(name, 1)
    checkpoint.load(checkpoint.latest(str(tmp_path)), {"model": resumed})
    assert train(resumed, 5, STEPS) == expected
    for (key, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
