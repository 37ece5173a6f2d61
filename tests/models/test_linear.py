"""Few rows through a Linear: what torch's own gives, in every shape, with and without a bias and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from omniloom.models.linear import Linear


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
            assert linear(x).dtype == torch.bfloat16
        given = linear.bfloat16()(x.bfloat16())
        assert torch.equal(given, nn.functional.linear(x.bfloat16(), linear.weight, linear.bias))
