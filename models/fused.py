"""Elementwise work of a transformer block in few passes over memory, for eager training; each with the formula of its
gradient. Written out in plain operators, autograd keeps and copies what these never make: halves that are cut and put
together again, products of one operand each. At width 384 on a CPU that is a tenth of a training step.

    swiglu      silu(gate) * up of the two halves of one matrix product (arXiv 2002.05202)
    rotate      pairs of channels turned by an angle (arXiv 2104.09864)
    rms_norm    x / rms(x) * weight (arXiv 1910.07467)

A compiler fuses the plain formulas by itself, and gets them. Gradients of gradients are refused.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def swiglu(gate_up: Tensor) -> Tensor:
    """(..., 2 h), gates before values -> (..., h)."""
    if torch.compiler.is_compiling():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _SwiGLU.apply(gate_up) if torch.is_grad_enabled() else _gated(gate_up)


def _gated(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        return _gated(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        given = torch.empty_like(gate_up)
        of_gate, of_up = given.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=of_up)
        torch.ops.aten.silu_backward(grad * up, gate, grad_input=of_gate)
        return given


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (..., head_dim) by angles whose cosines and sines are (..., head_dim / 2) and broadcast to it. Channel c
    pairs with c + head_dim / 2, the layout of Llama checkpoints in safetensors. cos and sin take no gradient."""
    if torch.compiler.is_compiling():
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _turned(x, cos, sin, back=False)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    sign = -1.0 if back else 1.0
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=sign)
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad, cos, sin, back=True), None, None


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Over the last axis, computed in float32 where x has fewer bits, in the type of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if torch.compiler.is_compiling() or x.device.type != "cpu":  # other devices have a kernel for it
        weight = None if weight is None else weight.to(wide)
        return F.rms_norm(x.to(wide), x.shape[-1:], weight, eps).to(x.dtype)
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _normed(x, weight, eps)[0]


def _normed(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x, and the scale (..., 1) that x was multiplied with."""
    wide = torch.promote_types(x.dtype, torch.float32)
    # One pass for the sum of squares; the root is taken back, as there is no reduction without it.
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_().div_(x.shape[-1])
    scale = square.add_(eps).rsqrt_()
    out = x * scale
    return (out if weight is None else out.mul_(weight)).to(x.dtype), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        out, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """With n = x * scale, g = grad * weight: scale * (g - n * mean(g * n)) of x, the sum of grad * n of weight."""
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = grad * normed
        of_weight = None
        if weight is not None:
            of_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
            mean = (product @ weight.to(product.dtype)).unsqueeze_(-1).div_(x.shape[-1])
            given = grad * weight
        else:
            mean, given = product.mean(-1, keepdim=True), grad.to(normed.dtype)
        given = given.addcmul(normed, mean, value=-1) if weight is None else given.addcmul_(normed, mean, value=-1)
        return given.mul_(scale).to(x.dtype), of_weight, None
