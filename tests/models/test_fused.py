"""Fused elementwise work against the plain formulas, and their gradients against autograd's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.fused import rms_norm, rotate, rotated_heads, swiglu


def plain_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def plain_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return scaled if weight is None else scaled * weight


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype).requires_grad_()


def angles(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    angle = torch.rand(2, 1, 5, 4, dtype=torch.float64) * 6
    return angle.cos().to(dtype), angle.sin().to(dtype)


def heads_of(qkv: Tensor, turn, cos: Tensor, sin: Tensor) -> Tensor:
    """Three heads of queries, one of keys and one of values, of 8 channels; all in one."""
    q, k, v = qkv.unflatten(-1, (5, 8)).transpose(1, 2).split((3, 1, 1), dim=1)
    return torch.cat((turn(q, cos, sin), turn(k, cos, sin), v), dim=1)


CASES = {
    "swiglu": lambda dtype: (swiglu, plain_swiglu, [draw(2, 5, 12, dtype=dtype)]),
    "swiglu of a product": lambda dtype: (
        lambda x: swiglu(x * 2),
        lambda x: plain_swiglu(x * 2),
        [draw(9, 12, dtype=dtype)],
    ),
    "swiglu of columns": lambda dtype: (
        lambda x: swiglu(x.t() * 2),
        lambda x: plain_swiglu(x.t() * 2),
        [draw(12, 9, dtype=dtype)],
    ),
    "rotated heads": lambda dtype: (
        lambda x, *turns: torch.cat(rotated_heads(x, *turns, 3, 1), dim=1),
        lambda x, *turns: heads_of(x, plain_rotate, *turns),
        [draw(2, 5, 40, dtype=dtype), *angles(dtype)],
    ),
    "rotate": lambda dtype: (rotate, plain_rotate, [draw(2, 3, 5, 8, dtype=dtype), *angles(dtype)]),
    # As attention has it: heads between positions and channels.
    "rotate strided": lambda dtype: (
        lambda x, *rest: rotate(x.transpose(1, 2), *rest),
        lambda x, *rest: plain_rotate(x.transpose(1, 2), *rest),
        [draw(2, 5, 3, 8, dtype=dtype), *angles(dtype)],
    ),
    "rms_norm": lambda dtype: (
        rms_norm,
        plain_norm,
        [draw(2, 5, 12, dtype=dtype), draw(12, dtype=torch.float32), 1e-2],
    ),
    "rms_norm without a weight": lambda dtype: (rms_norm, plain_norm, [draw(2, 5, 12, dtype=dtype), None, 1e-2]),
}
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 3e-2}


@pytest.mark.parametrize("cached", [1 << 17, 24], ids=["at once", "in pieces"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_formula(name, dtype, cached, monkeypatch):
    monkeypatch.setattr("omniloom.models.fused._CACHED", cached)
    torch.manual_seed(0)
    fused, plain, given = CASES[name](dtype)
    if dtype == torch.float64 and len(given) > 1 and torch.is_tensor(given[1]) and given[1].dtype == torch.float32:
        given[1] = draw(12, dtype=torch.float64)
    found = fused(*given)
    inputs = [x for x in given if torch.is_tensor(x) and x.requires_grad]
    assert found.dtype == given[0].dtype
    grad = torch.randn_like(found, dtype=torch.float64)
    gradients = torch.autograd.grad(found, inputs, grad.to(found.dtype))
    exact = [x.detach().double().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x for x in given]
    expected = plain(*exact)
    wanted = torch.autograd.grad(expected, [x for x in exact if torch.is_tensor(x) and x.requires_grad], grad)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    for one, other, of in zip(gradients, wanted, inputs, strict=True):
        assert one.dtype == of.dtype
        torch.testing.assert_close(one.double(), other, rtol=2 * tolerance, atol=4 * tolerance)


def test_compiled_they_are_the_same():
    torch.manual_seed(0)
    x, (cos, sin), weight = draw(2, 3, 5, 8, dtype=torch.float32), angles(torch.float32), draw(4, dtype=torch.float32)

    def run(x: Tensor) -> Tensor:
        return rms_norm(swiglu(rotate(x, cos, sin)), weight, 1e-5)

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), run(x))
    (one,), (other,) = (torch.autograd.grad(f(x).square().sum(), [x]) for f in (compiled, run))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", CASES)
def test_values_without_gradients_are_those_with_them(name):
    torch.manual_seed(0)
    function, _, given = CASES[name](torch.float32)
    expected = function(*given)
    with torch.no_grad():
        value = function(*given)
    assert torch.equal(value, expected) and not value.requires_grad


def test_the_input_of_swiglu_becomes_its_gradient_and_a_leaf_stays():
    torch.manual_seed(0)
    leaf = draw(4, 6, dtype=torch.float32)
    before = leaf.detach().clone()
    swiglu(leaf).sum().backward()
    assert torch.equal(leaf.detach(), before)
    product = leaf * 3
    (given,) = torch.autograd.grad(swiglu(product).sum(), product)
    assert given.data_ptr() == product.data_ptr()
    product = leaf * 3
    loss = swiglu(product).sum() + product.square().sum()  # whose gradient needs it, and comes first or not at all
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward(retain_graph=True)
        loss.backward()


def test_heads_lie_as_the_next_products_take_them():
    """Nothing is copied between the products of a block."""
    x, turns = draw(2, 5, 40, dtype=torch.float32), angles(torch.float32)
    product = x * 2
    q, k, v = rotated_heads(product, *turns, 3, 1)
    assert v.untyped_storage().data_ptr() == product.untyped_storage().data_ptr()
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    assert q.stride()[-1] == 1 and q.stride()[1] == 8
    given = torch.autograd.grad(q.sum() + k.sum() + v.sum(), product)[0]
    assert given.is_contiguous()


@pytest.mark.parametrize("weight", [True, False], ids=["weighted", "bare"])
def test_of_one_row_without_gradients_they_are_the_plain_formulas(weight):
    """The ways of their own that a token takes which is generated alone."""
    torch.manual_seed(0)
    row, scale = torch.randn(1, 1, 40), torch.randn(40) if weight else None
    cos, sin = (a.detach()[:1, :, :1] for a in angles(torch.float32))
    with torch.no_grad():
        normed, (q, k, v) = rms_norm(row, scale, 1e-2), rotated_heads(row, cos, sin, 3, 1)
    torch.testing.assert_close(normed, plain_norm(row, scale, 1e-2), rtol=1e-5, atol=1e-6)
    heads = row.view(1, 1, 5, 8).transpose(1, 2)
    torch.testing.assert_close(torch.cat((q, k), 1), plain_rotate(heads[:, :4], cos, sin), rtol=1e-5, atol=1e-6)
    assert torch.equal(v, heads[:, 4:]) and q.shape == (1, 3, 1, 8)
    assert rms_norm(torch.full((1, 40), torch.inf), scale, 1e-2).isnan().all()
