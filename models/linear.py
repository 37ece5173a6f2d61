"""A Linear that is quick on CPUs where PyTorch's is not: few rows, as the tokens of some requests in generation; and
training in bf16 on a CPU whose bf16 products are slower than its float32 ones."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_FEW = range(8, 65)


class Linear(nn.Linear):
    """Without gradients, few float32 rows are multiplied the other way about, (x W^T) as (W x^T)^T: BLAS copies its
    second operand into its own layout, and for few rows copying the weights takes longer than multiplying by them.
    At 16 rows that is 1.4 to 1.7 times as fast; from 64 on both are equal, below 8 there is nothing to gain. The
    result differs in its last digits and lies in memory channel by channel.

    With gradients, under an autocast to bf16 where `multiplies_bf16_slowly`: see `_Widened`."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.device.type == "cpu" and _is_slow_in_autocast():
            return _Widened.apply(x, self.weight, self._parameters["bias"])
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        rows = x.numel() // self.in_features
        if rows == 1 and not torch.is_autocast_enabled("cpu"):
            return self._of_one(x)
        if rows not in _FEW:
            return super().forward(x)
        columns = x.reshape(rows, self.in_features).t()
        bias = self._parameters["bias"]
        if bias is None:
            out = torch.mm(self.weight, columns)
        else:
            out = torch.addmm(bias[:, None], self.weight, columns)
        return out.t().view(*x.shape[:-1], self.out_features)

    def _of_one(self, x: Tensor) -> Tensor:
        """A single row, as a matrix by a vector: what surrounds a product costs a token as much as some of them."""
        row, bias = x.reshape(-1), self._parameters["bias"]
        out = torch.mv(self.weight, row) if bias is None else torch.addmv(bias, self.weight, row)
        return out.view(*x.shape[:-1], self.out_features)


def _is_slow_in_autocast() -> bool:
    return (
        torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not torch.compiler.is_compiling()
        and multiplies_bf16_slowly()
    )


@functools.cache
def multiplies_bf16_slowly() -> bool:
    """Whether this CPU multiplies bf16 slower than float32: x86 without AMX, but for AMD's with AVX512-BF16. Told from
    what it is and not from its speed of the moment, so that a training's last digits are the same on it every time."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # of PyTorch 2.12 on
    if found.get("architecture") != "x86_64" or found.get("amx_tile"):
        return False
    return not (found.get("avx512_bf16") and "AMD" in found.get("cpu_name", ""))


class _Widened(torch.autograd.Function):
    """x W^T + b of x and W rounded to bf16, multiplied as float32: their products are exact, and sums as of bf16
    kernels. What is kept and given is bf16, of weights the float32 gradient, which is not rounded on its way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow = x.to(torch.bfloat16)
        ctx.save_for_backward(narrow, weight)
        ctx.given, ctx.has_bias = x.dtype, bias is not None
        with torch.autocast("cpu", enabled=False):
            bias = None if bias is None else bias.to(torch.bfloat16).float()
            return F.linear(narrow.float(), weight.to(torch.bfloat16).float(), bias).to(torch.bfloat16)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        narrow, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        wide = grad.float().flatten(0, -2)
        if ctx.needs_input_grad[0]:
            of_x = (wide @ weight.to(torch.bfloat16).float()).to(torch.bfloat16).to(ctx.given).view(narrow.shape)
        if ctx.needs_input_grad[1]:
            of_weight = (wide.t() @ narrow.flatten(0, -2).float()).to(weight.dtype)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = wide.sum(0)
        return of_x, of_weight, of_bias
