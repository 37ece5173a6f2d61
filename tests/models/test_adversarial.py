"""R1, LeCam and the discriminator's warm-up: closed forms, what they remember, and the real engine."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from omniloom.infra.training import checkpoint
from omniloom.models.tokenizer import draws
from omniloom.models.tokenizer.adversarial import DiscriminatorObjective, LogitAverages, lecam_penalty
from omniloom.models.tokenizer.adversarial_losses import (
    ADVERSARIAL_LOSSES,
    hinge_discriminator_loss,
    slope_penalty,
    squared_gradient,
)
from omniloom.models.tokenizer.discriminator import Discriminator, Judgement, frozen_judgement
from omniloom.models.tokenizer.losses_config import LOSSES, DiscriminatorConfig, TokenizerLossConfig
from omniloom.models.tokenizer.precision import KeepsFloat32

SMALL = {"channels": 4, "layers": 1}


def pixels(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


def adversary(**fields) -> DiscriminatorObjective:
    torch.manual_seed(0)
    return DiscriminatorObjective(DiscriminatorConfig(**{**SMALL, **fields}))


class Linear(nn.Module):
    """D(x) = w . x, one logit a picture: its gradient is w everywhere."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(pixels(size, seed=5))

    def forward(self, x: torch.Tensor) -> Judgement:
        return Judgement((x.flatten(1) @ self.w).view(-1, 1, 1, 1), [])


# ---- R1 ----


@pytest.mark.parametrize("every", [1, 4])
def test_r1_of_a_linear_discriminator(every):
    objective = adversary(r1_gamma=3.0, r1_every=every)
    objective.discriminator = Linear(3 * 2 * 2)
    real, fake = pixels(5, 3, 2, 2), pixels(5, 3, 2, 2, seed=1)
    loss, logs = objective(real, fake, 0)
    w = objective.discriminator.w
    squared = w.detach().square().sum()
    torch.testing.assert_close(logs["r1"], squared)
    torch.testing.assert_close(loss.detach(), logs["discriminator_loss"] + 1.5 * every * squared)
    loss.backward()
    hinge = hinge_discriminator_loss(*(objective.discriminator(x).logits for x in (real, fake)))
    expected = torch.autograd.grad(hinge, w)[0] + 3.0 * every * w.detach()
    torch.testing.assert_close(w.grad, expected)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 3, 2, 1, 1)])
def test_the_signed_sum_estimates_the_mean_over_patches(shape):
    """Over all signs, exactly; each patch's own gradient is the reference."""
    torch.manual_seed(0)
    network, x = Discriminator(DiscriminatorConfig(**SMALL)), pixels(*shape).requires_grad_()
    logits = network(x).logits
    flat = logits.flatten()
    count = min(len(flat), 8)  # the first logits alone, where there are too many to enumerate
    picked = torch.zeros_like(flat)
    picked[:count] = 1.0
    wanted = sum(torch.autograd.grad(logit, x, retain_graph=True)[0].square().sum() for logit in flat[:count])
    values = []
    for signs in itertools.product((-1.0, 1.0), repeat=count):
        picked[:count] = torch.tensor(signs)
        values.append(squared_gradient(logits, x, picked.view_as(logits)).detach() * len(flat))
    torch.testing.assert_close(torch.stack(values).mean(), wanted, rtol=1e-4, atol=1e-12)


def test_r1_weighs_the_same_at_any_size():
    objective = adversary(channels=8, layers=2, r1_gamma=1.0, r1_every=1)
    means = []
    for side in (16, 64):
        values = []
        for seed in range(20):
            torch.manual_seed(seed)
            values.append(objective(*[pixels(4, 3, side, side, seed=seed)] * 2, 0)[1]["r1"])
        means.append(float(torch.stack(values).mean()))
    assert means[1] == pytest.approx(means[0], rel=0.5)  # 13 times as many patches; a picture's border counts less


@given(every=st.integers(1, 12), windows=st.integers(1, 6))
def test_r1_is_taken_once_in_each_window(every, windows):
    config = DiscriminatorConfig(r1_gamma=1.0, r1_every=every)
    taken = [config.takes_penalty(step) for step in range(every * windows)]
    assert [sum(taken[i : i + every]) for i in range(0, len(taken), every)] == [1] * windows
    assert not any(DiscriminatorConfig(r1_every=every).takes_penalty(step) for step in range(every))


@pytest.mark.parametrize("every", [2, 3, 4, 16])
def test_kinds_that_take_turns_both_get_r1(every):
    config = DiscriminatorConfig(r1_gamma=1.0, r1_every=every)
    for period in (2, 3, 4, 10):
        places = [step % period for step in range(every * 1000) if config.takes_penalty(step)]
        assert all(places.count(place) == pytest.approx(1000 / period, rel=0.2) for place in range(period))


def test_r1_is_due_by_the_step_in_training_alone():
    objective, x = adversary(r1_gamma=1.0, r1_every=2), pixels(2, 3, 8, 8)
    assert ["r1" in objective(x, x, step)[1] for step in range(4)] == [True, False, False, True]
    assert "r1" in objective(x, x)[1]  # the first step
    bare, state = adversary(), torch.get_rng_state()
    assert "r1" not in objective.eval()(x, x, 0)[1] and "r1" not in bare(x, x, 0)[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 5, 16, 16)])
def test_r1_calms_the_discriminator_and_touches_no_pixels(shape):
    real, fake = pixels(*shape).requires_grad_(), pixels(*shape, seed=1).requires_grad_()
    slopes = {}
    for gamma in (0.0, 10.0):
        objective = adversary(r1_gamma=gamma, r1_every=1)
        optimizer = torch.optim.Adam(objective.parameters(), 5e-3)
        for step in range(15):
            loss, logs = objective(real, fake, step)
            optimizer.zero_grad()
            loss.backward(inputs=list(objective.parameters()))
            optimizer.step()
        slopes[gamma] = float(objective._steepness(real).detach())
    assert slopes[10.0] < 0.5 * slopes[0.0]
    assert real.grad is None and fake.grad is None


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 5, 16, 16)])
@pytest.mark.parametrize("cast", [False, True])
def test_r1_is_computed_in_float32(shape, cast):
    """Under autocast exactly; of a network in bf16, of its own rounded weights."""
    real, fake = pixels(*shape), pixels(*shape, seed=1)
    objective = adversary(r1_gamma=1.0, r1_every=1)
    if cast:
        objective.to(torch.bfloat16).float()
    torch.manual_seed(1)
    expected = objective(real, fake, 0)[1]["r1"]
    if cast:
        objective.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not cast):
        torch.manual_seed(1)
        loss, logs = objective(real, fake, 0)
    loss.backward()
    torch.testing.assert_close(logs["r1"], expected, rtol=1e-5, atol=0)
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


# ---- Wasserstein with its penalty, relativistic pairing with R1 and R2 ----


def test_losses_are_their_closed_forms():
    """By numpy, of a map of logits each."""
    real, fake = pixels(3, 1, 2, 2) * 4, pixels(3, 1, 2, 2, seed=1) * 4
    x, y = real.double().numpy(), fake.double().numpy()

    def softplus(t):
        return np.logaddexp(0, t).mean()

    expected = {
        "hinge": ((np.maximum(0, 1 - x).mean() + np.maximum(0, 1 + y).mean()) / 2, -y.mean()),
        "wasserstein": (y.mean() - x.mean(), -y.mean()),
        "relativistic": (softplus(y - x), softplus(x - y)),
    }
    assert expected.keys() == set(LOSSES) == ADVERSARIAL_LOSSES.keys()
    for name, (of_discriminator, of_generator) in expected.items():
        loss = ADVERSARIAL_LOSSES[name]
        assert float(loss.discriminator(real, fake)) == pytest.approx(of_discriminator, rel=1e-5)
        assert float(loss.generator(real, fake)) == pytest.approx(of_generator, rel=1e-5)
    assert [name for name, loss in ADVERSARIAL_LOSSES.items() if loss.compares] == ["relativistic"]


@pytest.mark.parametrize("weight", [None, 3.0])
def test_the_gradient_penalty_of_a_linear_discriminator(weight):
    """Its slope is |w| everywhere, and the penalty's gradient 2 (|w| - 1) w / |w|."""
    objective = adversary(loss="wasserstein", gradient_penalty=weight, r1_every=2)
    objective.discriminator = Linear(3 * 2 * 2)
    real, fake = pixels(5, 3, 2, 2), pixels(5, 3, 2, 2, seed=1)
    loss, logs = objective(real, fake, 0)
    w = objective.discriminator.w.detach()
    torch.testing.assert_close(logs["gradient_penalty"], (w.norm() - 1).square())
    total = (weight or 10.0) * 2
    torch.testing.assert_close(loss.detach(), logs["discriminator_loss"] + total * logs["gradient_penalty"])
    loss.backward()
    expected = (fake - real).flatten(1).mean(0) + total * 2 * (w.norm() - 1) * w / w.norm()
    torch.testing.assert_close(objective.discriminator.w.grad, expected)


def test_relativistic_of_a_linear_discriminator():
    objective = adversary(loss="relativistic", r1_gamma=3.0, r1_every=1)
    objective.discriminator = Linear(3 * 2 * 2)
    real, fake = pixels(5, 3, 2, 2), pixels(5, 3, 2, 2, seed=1)
    loss, logs = objective(real, fake, 0)
    w = objective.discriminator.w.detach()
    apart = (fake - real).flatten(1)
    torch.testing.assert_close(logs["discriminator_loss"], F.softplus(apart @ w).mean())
    torch.testing.assert_close(logs["r1"], w.square().sum())
    torch.testing.assert_close(logs["r2"], logs["r1"])
    loss.backward()
    expected = ((apart @ w).sigmoid()[:, None] * apart).mean(0) + 2 * 3.0 * w
    torch.testing.assert_close(objective.discriminator.w.grad, expected)


class Square(nn.Module):
    """D(x) = |x|^2 s / 2, whose gradient is s x: other at real than at fake pixels, and in between."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor) -> Judgement:
        return Judgement((self.s * x.flatten(1).square().sum(1) / 2).view(-1, 1, 1, 1), [])


def test_penalties_are_taken_where_they_belong():
    """R1 at the real pixels, R2 at the fake ones, the slope at a point of its own for each pair between the two."""
    real, fake = pixels(4, 3, 2, 2), 3 * pixels(4, 3, 2, 2, seed=1)
    objective = adversary(loss="relativistic", r1_gamma=1.0, r1_every=1)
    objective.discriminator = Square()
    logs = objective(real, fake, 0)[1]
    for name, x in (("r1", real), ("r2", fake)):
        torch.testing.assert_close(logs[name], 0.49 * x.flatten(1).square().sum(1).mean())
    objective = adversary(loss="wasserstein", r1_every=1)
    objective.discriminator = Square()
    with draws.by_example([5, 6, 7, 8], torch.device("cpu")):
        logs = objective(real, fake, 0)[1]
    shares = torch.cat([torch.rand(1, generator=torch.Generator().manual_seed(seed)) for seed in (5, 6, 7, 8)])
    between = shares[:, None] * real.flatten(1) + (1 - shares[:, None]) * fake.flatten(1)
    torch.testing.assert_close(logs["gradient_penalty"], (0.7 * between.norm(dim=1) - 1).square().mean())


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 5, 16, 16)])
def test_the_slope_is_that_of_the_mean_logit(shape):
    """Against differences along the gradient; in float64, but of 3-D convolutions, which compute in float32."""
    torch.manual_seed(0)
    network, x = Discriminator(DiscriminatorConfig(**SMALL)).double(), pixels(*shape).double().requires_grad_()
    penalty = slope_penalty(network(x).logits, x)
    (gradient,) = torch.autograd.grad(network(x).logits.flatten(1).mean(1).sum(), x)
    norms, (eps, within) = gradient.flatten(1).norm(dim=1), (1e-5, 1e-4) if len(shape) == 4 else (3e-3, 2e-3)
    along = gradient / norms.view(-1, *[1] * (x.ndim - 1))
    with torch.no_grad():
        ends = [network(x + sign * eps * along).logits.flatten(1).mean(1) for sign in (1, -1)]
    slopes = (ends[0] - ends[1]) / (2 * eps)
    torch.testing.assert_close(penalty.detach(), (slopes - 1).square().mean(), rtol=within, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_generator_is_pulled_towards_the_real(loss):
    """Against a discriminator that was trained by the same loss, by one step of gradient."""
    fields = {"r1_gamma": 0.1} if loss == "relativistic" else {}
    objective = adversary(loss=loss, r1_every=1, **fields)
    real, fake = torch.full((6, 3, 8, 8), 0.3), pixels(6, 3, 8, 8) * 0.2 - 0.3
    optimizer = torch.optim.Adam(objective.parameters(), 5e-3)
    for step in range(30):
        optimizer.zero_grad()
        objective(real, fake, step)[0].backward()
        optimizer.step()
    moved = fake.clone().requires_grad_()
    judged = frozen_judgement(objective.discriminator, moved).logits
    term = objective.loss.generator(objective.discriminator(real).logits.detach(), judged)
    (gradient,) = torch.autograd.grad(term, moved)
    assert float(gradient.mean()) < 0 and float((gradient * (real - fake)).sum()) < 0


# ---- LeCam ----


def test_lecam_closed_form():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])
    assert float(lecam_penalty(real, fake, torch.tensor(2.0), torch.tensor(-1.0))) == 10.0 + 6.5


@settings(max_examples=20)
@given(decay=st.floats(0.0, 0.99), kinds=st.lists(st.booleans(), min_size=1, max_size=12))
def test_averages_are_their_recursion_apart_for_images_and_videos(decay, kinds):
    averages, expected = LogitAverages(decay), {}
    for i, video in enumerate(kinds):
        real, fake = pixels(3, seed=2 * i), pixels(4, seed=2 * i + 1)
        averages.update(real, fake, video)
        now = [float(real.mean()), float(fake.mean())]
        old = expected.get(video, now)
        expected[video] = [decay * o + (1 - decay) * n for o, n in zip(old, now)]
    for video, values in expected.items():
        assert [float(v) for v in averages.of(video)] == pytest.approx(values, abs=1e-6)


def test_logits_that_are_not_finite_are_not_remembered():
    averages = LogitAverages(0.5)
    averages.update(torch.tensor([torch.nan]), torch.zeros(1), False)
    averages.update(torch.ones(1), torch.zeros(1), False)
    averages.update(torch.ones(1), torch.tensor([torch.inf]), False)
    assert [float(v) for v in averages.of(False)] == [1.0, 0.0]


def test_lecam_enters_the_loss_and_its_averages_the_state():
    objective = adversary(lecam_weight=0.3, lecam_decay=0.9)
    real, fake = pixels(2, 3, 8, 8), pixels(2, 3, 8, 8, seed=1)
    loss, logs = objective(real, fake)
    torch.testing.assert_close(loss.detach(), logs["discriminator_loss"] + 0.3 * logs["lecam"])
    judged = [objective.discriminator(x).logits for x in (real, fake)]
    means = [logits.mean() for logits in judged]  # the first batch sets the averages
    torch.testing.assert_close(logs["lecam"], lecam_penalty(*judged, *means))
    kept = objective.state_dict()["averages.means"].clone()
    assert kept[0].abs().sum() > 0 and kept[1].abs().sum() == 0
    objective.eval()(fake, real)
    assert torch.equal(objective.state_dict()["averages.means"], kept)
    assert set(adversary().state_dict()) == set(objective.state_dict()) - {"averages.means", "averages.started"}


def test_averages_keep_float32_when_the_network_is_cast():
    objective = adversary(lecam_weight=0.3)
    x = pixels(2, 3, 8, 8)
    objective(x, 0.5 * x)
    kept = objective.averages.means.clone()
    objective.to(torch.bfloat16)
    assert torch.equal(objective.averages.means, kept)
    loss, _ = objective(x, 0.5 * x)
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_what_keeps_float32_keeps_its_values_and_moves():
    class Kept(KeepsFloat32):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(pixels(3))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.register_buffer("mean", pixels(3, seed=1))
            self.child = nn.Linear(2, 2)

    kept = nn.Sequential(Kept()).to(torch.bfloat16)[0]
    assert torch.equal(kept.weight, pixels(3)) and torch.equal(kept.mean, pixels(3, seed=1))
    assert kept.count.dtype == torch.int64 and kept.child.weight.dtype == torch.bfloat16
    kept.to(device="meta", dtype=torch.bfloat16)
    assert kept.weight.is_meta and kept.mean.is_meta and kept.weight.dtype == kept.mean.dtype == torch.float32


def test_lecam_holds_the_logits_together():
    real, fake = F.interpolate(pixels(4, 3, 2, 2), 8), F.interpolate(pixels(4, 3, 2, 2, seed=1), 8)
    gaps = {}
    for weight in (0.0, 1.0):
        objective = adversary(lecam_weight=weight)
        optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
        for _ in range(40):
            loss, logs = objective(real, fake)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        gaps[weight] = float(logs["logits_real"] - logs["logits_fake"])
    assert 0 < gaps[1.0] < 0.7 * gaps[0.0]


# ---- the schedule, and bad values ----


@given(start=st.integers(0, 9), warmup=st.integers(0, 9), ramp=st.integers(0, 9))
def test_the_discriminator_trains_before_the_generator_feels_it(start, warmup, ramp):
    config = TokenizerLossConfig(adversarial_start=start, discriminator_warmup=warmup, adversarial_ramp=ramp)
    weights = [config.adversarial_schedule(step) for step in range(40)]
    trains = [config.trains_discriminator(step) for step in range(40)]
    assert trains == [step >= start for step in range(40)]
    assert weights[: start + warmup] == [0.0] * (start + warmup) and weights[start + warmup] > 0
    assert weights == sorted(weights) and weights[start + warmup + ramp] == 1.0


@pytest.mark.parametrize(
    "cls,name,value",
    [
        (DiscriminatorConfig, "r1_gamma", -1.0),
        (DiscriminatorConfig, "r1_every", 0),
        (DiscriminatorConfig, "lecam_weight", -0.1),
        (DiscriminatorConfig, "lecam_decay", 1.0),
        (TokenizerLossConfig, "perceptual_weight", -1.0),
        (TokenizerLossConfig, "style_weight", float("nan")),
        (TokenizerLossConfig, "discriminator_warmup", -1),
        (TokenizerLossConfig, "reconstruction", "l3"),
    ],
)
def test_bad_values_are_named(cls, name, value):
    with pytest.raises(ValueError, match=f"{cls.__name__}.{name}: expected"):
        cls(**{name: value})


def test_configs_import_without_torch():
    import subprocess

    code = "import omniloom.models.tokenizer.losses_config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- the engine ----

EVERYTHING = {"r1_gamma": 5.0, "r1_every": 2, "lecam_weight": 0.2, "lecam_decay": 0.9}
STEPS = 6


def batch(step: int, rank: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (2, 3, 5, 8, 8) if step % 2 else (2, 3, 8, 8)
    return pixels(*shape, seed=100 * rank + 2 * step), pixels(*shape, seed=100 * rank + 2 * step + 1)


WASSERSTEIN = {"loss": "wasserstein", "r1_every": 1}
RELATIVISTIC = {"loss": "relativistic", "r1_gamma": 1.0, "r1_every": 2}
EACH = [EVERYTHING, WASSERSTEIN, RELATIVISTIC]


def engine(zero_stage: int, precision: str = "fp32", fields: dict = EVERYTHING):
    from omniloom.infra.training.config import EngineConfig, OptimizerConfig
    from omniloom.infra.training.engine import Engine

    optimizer = OptimizerConfig(lr=2e-3, warmup_steps=0, schedule="constant", weight_decay=0.0, grad_clip=0.0)
    config = EngineConfig(zero_stage=zero_stage, ema_decay=0.0, precision=precision)
    return Engine(adversary(**fields), optimizer, config, STEPS, 2)


def train(built, start: int, stop: int) -> list[dict[str, float]]:
    rows = []
    for step in range(start, stop):
        torch.manual_seed(step)
        loss, logs = built(*batch(step), step)
        built.backward(loss)
        built.step(step)
        rows.append({name: float(value) for name, value in logs.items()})
    return rows


@pytest.mark.parametrize("fields", EACH, ids=["hinge", "wasserstein", "relativistic"])
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_the_engine_trains_like_plain_torch(process_group, zero_stage, fields):
    """The penalties' second derivative arrives through DeepSpeed as it does without."""
    built = engine(zero_stage, fields=fields)
    rows = train(built, 0, STEPS)
    plain = adversary(**fields)
    adam = torch.optim.AdamW(plain.parameters(), 2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    for step in range(STEPS):
        torch.manual_seed(step)
        loss, logs = plain(*batch(step), step)
        # The engine keeps gradients of zero where torch keeps none, and so moves by its momentum there too.
        adam.zero_grad(set_to_none=False)
        loss.backward()
        for p in plain.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        adam.step()
        assert rows[step] == pytest.approx({name: float(value) for name, value in logs.items()}, rel=1e-3, abs=1e-5)
    taken = plain.config.penalty_weights
    counts = [sum(name in row for row in rows) for name in taken]
    assert taken and counts == [STEPS // plain.config.r1_every] * len(taken)
    state = built.state_dict()
    for name, value in plain.state_dict().items():
        if fields is RELATIVISTIC and name.endswith("head.bias"):
            continue  # differences of logits know no bias: what moves it is rounding
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_checkpoint_goes_on_bit_for_bit(process_group, tmp_path, zero_stage):
    straight = engine(zero_stage)
    train(straight, 0, 3)
    checkpoint.save(str(tmp_path), 3, {"critic": straight}, {}, keep=1)
    expected = train(straight, 3, STEPS)
    resumed = engine(zero_stage)
    train(resumed, 0, 1)
    checkpoint.load(checkpoint.latest(str(tmp_path)), {"critic": resumed})
    assert train(resumed, 3, STEPS) == expected
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_r1_trains_under_bf16(process_group):
    rows, exact = train(engine(1, "bf16"), 0, STEPS), train(engine(1), 0, STEPS)
    for row, wanted in zip(rows, exact, strict=True):
        assert row == pytest.approx(wanted, rel=0.05, abs=0.05)


@pytest.mark.slow
def test_two_ranks_keep_the_same_averages(tmp_path):
    """Those of all their logits."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert torch.equal(found[0]["means"], found[1]["means"])
    plain = adversary(**EVERYTHING)
    halves = [batch(0, rank) for rank in range(2)]
    plain(*(torch.cat(side) for side in zip(*halves)))
    torch.testing.assert_close(found[0]["means"], plain.averages.means, rtol=1e-4, atol=1e-6)


def _rank(rank: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    objective = adversary(**EVERYTHING)
    objective(*batch(0, rank))
    torch.save({"means": objective.averages.means}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
