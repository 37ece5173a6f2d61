"""The cross entropy that makes its gradient as it goes: values and gradients against the plain formulas in float64,
over several groups of rows, and what is kept of the logits."""

from __future__ import annotations

import pytest
import torch

from omniloom.models.unified.memory import AT_ONCE
from omniloom.models.unified.objectives.entropy import _plain, entropy_sums

ROWS, CLASSES = 700, 1000  # of which 262 rows are widened together


def given(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = (torch.randn(ROWS, CLASSES, generator=random) * 4).to(dtype).requires_grad_()
    weights = torch.rand(ROWS, generator=random)
    return logits, torch.randint(CLASSES, (ROWS,), generator=random), weights


@pytest.mark.parametrize("z_loss", [0.0, 0.03])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)], ids=["fp32", "bf16"])
def test_values_and_gradients_are_the_formulas(z_loss, weighted, dtype, tolerance):
    assert 2 * AT_ONCE < ROWS * CLASSES
    logits, labels, weights = given(dtype)
    mine = entropy_sums(logits, labels, weights if weighted else None, z_loss)
    (3 * mine[0]).backward()
    # By definition, of the very same numbers.
    exact = logits.detach().double().requires_grad_()
    weighs = weights.double() if weighted else torch.ones(ROWS, dtype=torch.float64)
    partition = exact.exp().sum(1).log()
    entropy = (weighs * (partition - exact[torch.arange(ROWS), labels])).sum()
    squares = (weighs * partition**2).sum()
    (3 * (entropy + z_loss * squares)).backward()
    wanted = entropy + z_loss * squares, entropy, squares if z_loss else torch.zeros(())
    for found, value in zip(mine, wanted, strict=True):
        assert float(found.detach()) == pytest.approx(float(value.detach()), rel=1e-6)
    assert logits.grad.dtype == dtype
    scale = exact.grad.abs().amax(1, keepdim=True)
    assert ((logits.grad.double() - exact.grad).abs() / scale).max() < 4 * tolerance


@pytest.mark.parametrize("z_loss", [0.0, 0.03])
def test_the_compiled_formula_gives_the_same(z_loss):
    logits, labels, weights = given(torch.float32)
    for found, plain in zip(
        entropy_sums(logits, labels, weights, z_loss), _plain(logits, labels, weights, z_loss), strict=True
    ):
        torch.testing.assert_close(found, plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize("z_loss", [0.0, 0.03])
def test_nothing_but_the_gradient_is_kept_in_the_logits_own_type(z_loss):
    logits, labels, weights = given(torch.bfloat16)
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
        loss, *_ = entropy_sums(logits, labels, weights, z_loss)
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert loss.requires_grad and max(sizes) == logits.numel() * 2 < 4 * logits.numel()
    assert sum(size for size in sizes) < 2.1 * logits.numel()  # what is left behind
    with torch.no_grad():
        assert not entropy_sums(logits, labels, weights, z_loss)[0].requires_grad


def test_no_rows_give_zero_and_a_second_pass_is_refused():
    nothing = torch.empty(0, CLASSES, requires_grad=True)
    sums = entropy_sums(nothing, torch.empty(0, dtype=torch.int64))
    assert [float(value.detach()) for value in sums] == [0, 0, 0]
    sums[0].backward()
    assert nothing.grad.shape == nothing.shape
    logits, labels, _ = given(torch.float32)
    loss = entropy_sums(logits, labels)[0]
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        loss.backward()
