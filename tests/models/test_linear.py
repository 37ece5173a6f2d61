"""Few rows through a Linear: what torch's own gives, in every shape, with and without a bias and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omniloom.models.linear import Linear, multiplies_bf16_slowly


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (16, 1), (4, 7), (2, 4, 4), (3, 40)])
def test_the_product_is_torchs_own(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = Linear(24, 10, bias=bias), torch.randn(*shape, 24)
    expected = nn.functional.linear(x, linear.weight, linear.bias)
    with torch.no_grad():
        given = linear(x)
    assert given.shape == expected.shape
    torch.testing.assert_close(given, expected.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(linear(x), expected, atol=0, rtol=0)  # training's is untouched
    assert linear(x).requires_grad


def test_other_types_and_autocast_stay_as_they_are() -> None:
    linear, x = Linear(24, 10), torch.randn(16, 24)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x).dtype == linear(x[:1]).dtype == torch.bfloat16
        given = linear.bfloat16()(x.bfloat16())
        assert torch.equal(given, nn.functional.linear(x.bfloat16(), linear.weight, linear.bias))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_bf16_by_float32_products_is_bf16_whose_gradients_are_not_rounded_twice(monkeypatch, bias, given):
    torch.manual_seed(0)
    layer = Linear(48, 30, bias=bias)
    x, grad = torch.randn(2, 70, 48, dtype=given), torch.randn(2, 70, 30).bfloat16()
    found = {}
    for slow in (False, True):
        monkeypatch.setattr("omniloom.models.linear.multiplies_bf16_slowly", lambda slow=slow: slow)
        layer.zero_grad()
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(own)
        out.backward(grad)
        assert out.dtype == torch.bfloat16 and own.grad.dtype == given
        found[slow] = [out.detach(), own.grad, *(p.grad for p in layer.parameters())]
    # By definition, in float64, of operands rounded to bf16.
    narrow, weight = x.bfloat16().double(), layer.weight.detach().bfloat16().double()
    exact = narrow @ weight.t() + (layer.bias.detach().bfloat16().double() if bias else 0)
    wide = grad.double().flatten(0, 1)
    wanted = [exact, (wide @ weight).view(2, 70, 48), wide.t() @ narrow.flatten(0, 1), wide.sum(0)]
    for number, (mine, native, value) in enumerate(zip(found[True], found[False], wanted)):
        rounding = 2**-8 if number < 2 else 1e-6  # outputs and gradients of inputs are bf16
        close = {"rtol": rounding, "atol": 1e-6 * float(value.abs().max())}
        torch.testing.assert_close(mine.double(), value, **close)
        torch.testing.assert_close(native.double(), value, rtol=2**-6, atol=2**-6 * float(value.abs().max()))


def test_what_this_cpu_is_tells_how_bf16_is_multiplied(monkeypatch):
    told = {"architecture": "x86_64", "amx_tile": False, "avx512_bf16": True, "cpu_name": "Intel Xeon"}
    for changed, slow in (
        ({}, True),
        ({"amx_tile": True}, False),
        ({"cpu_name": "AMD EPYC"}, False),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, True),
        ({"architecture": "aarch64"}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda changed=changed: told | changed)
        assert multiplies_bf16_slowly.__wrapped__() is slow
