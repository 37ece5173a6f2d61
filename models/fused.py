"""Elementwise work of a transformer block in few passes over memory, for eager training; each with the formula of its
gradient. Written out in plain operators, autograd keeps and copies what these never make: halves that are cut and put
together again, products of one operand each. At width 384 on a CPU that is a tenth of a training step.

    swiglu      silu(gate) * up of the two halves of one matrix product (arXiv 2002.05202)
    rotate      pairs of channels turned by an angle (arXiv 2104.09864); rotated_heads: queries and keys of a product
    rms_norm    x / rms(x) * weight (arXiv 1910.07467)

A compiler fuses the plain formulas by itself, and gets them. Gradients of gradients are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_CACHED = 1 << 17  # numbers of the last of some tensors that are gone through together


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
    """The gradient is written over the input, the largest tensor of a block, which nothing else needs by then. Where
    something does, autograd refuses its backward pass. An input that is a leaf is left as it is."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.is_leaf = gate_up.is_leaf
        return _gated(gate_up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        given = gate_up.clone() if ctx.is_leaf else gate_up.contiguous()
        for given_, grad_ in _pieces(given, grad):
            gate, up = given_.chunk(2, dim=-1)
            of_value = grad_ * up
            torch.mul(grad_, F.silu(gate), out=up)
            torch.ops.aten.silu_backward(of_value, gate, grad_input=gate)
        return given


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows (n, channels) of tensors (..., channels) that have the same leading axes, so few at a time that what is
    computed in between stays in a core's cache; on other devices all rows."""
    rows = [x.reshape(-1, x.shape[-1]) for x in tensors]
    size = max(1, _CACHED // rows[-1].shape[1]) if rows[0].device.type == "cpu" else max(1, len(rows[0]))
    return zip(*(x.split(size) for x in rows), strict=True)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (..., head_dim) by angles whose cosines and sines are (..., head_dim / 2) and broadcast to it. Channel c
    pairs with c + head_dim / 2, the layout of Llama checkpoints in safetensors. cos and sin take no gradient."""
    if torch.compiler.is_compiling():
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _turned(x, cos, sin, back=False)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    return _turn(x, cos, sin, back, torch.empty(x.shape, dtype=x.dtype, device=x.device))


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool, out: Tensor) -> Tensor:
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    sign = -1.0 if back else 1.0
    torch.mul(x, torch.cat((cos, cos), dim=-1), out=out)  # whole channels: half of them are short loops
    out_first.addcmul_(second, sin, value=-sign)
    out_second.addcmul_(first, sin, value=sign)
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


def rotated_heads(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, (heads + 2 kv_heads) head_dim) -> queries and keys, turned, and values: (B, heads or kv_heads, N,
    head_dim), in memory place by place. Their gradients become one tensor without being put together."""
    if torch.compiler.is_compiling():
        q, k, v = _cut(qkv, heads, kv_heads, 2 * cos.shape[-1])
        return rotate(q, cos, sin), rotate(k, cos, sin), v
    if torch.is_grad_enabled():
        return _RotatedHeads.apply(qkv, cos, sin, heads, kv_heads)
    return _turned_heads(qkv, cos, sin, heads, kv_heads)


def _cut(qkv: Tensor, heads: int, kv_heads: int, head_dim: int) -> tuple[Tensor, ...]:
    return qkv.unflatten(-1, (-1, head_dim)).transpose(1, 2).split((heads, kv_heads, kv_heads), dim=1)


def _turned_heads(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    places = qkv.unflatten(-1, (-1, 2 * cos.shape[-1])).transpose(1, 2)
    both, v = places.split((heads + kv_heads, kv_heads), dim=1)
    if places.shape[0] * places.shape[2] == 1:  # of a single place few calls, not few passes over memory
        pairs = both.unflatten(-1, (2, -1))
        turned = pairs.flip(-2).mul_(sin.unsqueeze(-2))
        turned.select(-2, 0).neg_()
        q, k = turned.addcmul_(pairs, cos.unsqueeze(-2)).flatten(-2).split((heads, kv_heads), dim=1)
        return q, k, v
    turned = both.new_empty(both.transpose(1, 2).shape).transpose(1, 2)
    q, k = _turn(both, cos, sin, False, turned).split((heads, kv_heads), dim=1)
    return q, k, v


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        ctx.shape, ctx.cut = qkv.shape, (heads, kv_heads, 2 * cos.shape[-1])
        return _turned_heads(qkv, cos, sin, heads, kv_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        given = grad_q.new_empty(ctx.shape)
        q, k, v = _cut(given, *ctx.cut)
        _turn(grad_q, cos, sin, True, q), _turn(grad_k, cos, sin, True, k), v.copy_(grad_v)
        return given, None, None, None, None


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Over the last axis, computed in float32 where x has fewer bits, in the type of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if torch.compiler.is_compiling() or x.device.type != "cpu":  # other devices have a kernel for it
        weight = None if weight is None else weight.to(wide)
        return F.rms_norm(x.to(wide), x.shape[-1:], weight, eps).to(x.dtype)
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)
    if x.numel() == x.shape[-1] and x.dtype == torch.float32:
        return _normed_row(x, weight, eps)
    return _normed(x, weight, eps)[0]


def _normed_row(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Of a single row, as a token that is generated: the scale is a number of the host's, which five calls spares."""
    row = x.reshape(-1)
    normed = x * (1.0 / math.sqrt(torch.dot(row, row).item() / len(row) + eps))
    return normed if weight is None else normed.mul_(weight)


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
        given, of_weight = x.new_empty(x.shape, dtype=scale.dtype), scale.new_zeros(x.shape[-1])
        for x_, scale_, grad_, given_ in _pieces(x, scale, grad, given):
            normed = x_ * scale_
            product = grad_ * normed
            if weight is None:
                mean, part = product.mean(-1, keepdim=True), given_.copy_(grad_)
            else:
                of_weight += product.sum(0)
                mean = (product @ weight.to(product.dtype)).unsqueeze_(-1).div_(x.shape[-1])
                part = torch.mul(grad_, weight, out=given_)
            part.addcmul_(normed, mean, value=-1).mul_(scale_)
        return given.to(x.dtype), None if weight is None else of_weight.to(weight.dtype), None
