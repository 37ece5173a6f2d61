"""Attention under the packed mask, three ways. In: queries (B, H, N, D), keys and values (B, kv_heads, K, D). Out: the
values mixed by softmax(q k / sqrt(D)) over what each query sees, (B, H, N, D).

    DenseAttend  SDPA under a boolean mask: any shape, any device; generation, whose cache has more keys than queries
    BlockAttend  documents in runs of 128 queries, matrix products alone: training on CPUs, where neither keys of other
                 documents nor most keys ahead are touched. Linear in the documents
    FlexAttend   FlexAttention under a block mask that the loader has made: training on GPUs

    SquaredReluAttend  by relu(q k / n)^2 instead, of a gated attention unit (arXiv 2202.10447), as two products

All take the mask of `models.unified.mask`. A batch carries the plan of the last two from the loader to the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from omniloom.models.unified.mask import BLOCK, BlockTables, QueryBlocks, dense_mask

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def repeated(x: Tensor, heads: int) -> Tensor:
    """Grouped heads written out (B, H, K, D), as CPUs' kernels take no groups."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


@dataclass
class DenseAttend:
    """mask: bool, broadcast to (B, H, N, K)."""

    mask: Tensor

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (repeated(x, q.shape[1]) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


@dataclass
class SquaredReluAttend:
    """relu(q k / length)^2 v, without a softmax (arXiv 2202.10447), over what each query sees; a query that
    sees more gets more. `length` is no row's and no document's but one for all, so that neither changes another.

    mask  as of `DenseAttend`
    """

    mask: Tensor
    length: int

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.transpose(-1, -2)).masked_fill(~self.mask, 0) / self.length
        return F.relu(scores).square() @ v


def dense(mask: Tensor, squared: int | None = None) -> Attend:
    """squared: the length of squared ReLUs, None of a softmax."""
    return DenseAttend(mask) if squared is None else SquaredReluAttend(mask, squared)


@dataclass
class BlockAttend:
    """Its output at padding is 0."""

    blocks: QueryBlocks

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (repeated(x, q.shape[1]) for x in (k, v))
        spans, bias = self.blocks.spans, self.blocks.bias
        if torch.compiler.is_compiling():
            return _block_attention(q, k, v, spans, bias)[0]
        return _BlockAttention.apply(q, k, v, spans, bias)


@dataclass
class FlexAttend:
    """tables, start and end on the queries' device; int32 bounds spare the kernel registers."""

    tables: BlockTables
    start: Tensor
    end: Tensor

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        how = {"block_mask": self.block_mask(), "enable_gqa": q.shape[1] != k.shape[1]}
        if torch.compiler.is_compiling() or not q.is_cuda:
            return flex_attention(q, k, v, **how)
        with torch.compiler.set_stance("default"):  # whatever runs eagerly around it, as evaluation in training does
            return _compiled_flex()(q, k, v, **how)

    def block_mask(self):
        from torch.nn.attention.flex_attention import BlockMask

        start, end, tables = self.start, self.end, self.tables

        def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j >= start[b, i]) & (j < end[b, i])

        return BlockMask(
            (start.shape[1],) * 2,
            *tables.some,
            *tables.all,
            *tables.some_by_keys,
            *tables.all_by_keys,
            (BLOCK, BLOCK),
            sees,
        )


@cache
def _compiled_flex():
    """Without a compiler around it FlexAttention would write out every score."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def attend_for(
    plan: QueryBlocks | BlockTables | None, start: Tensor, end: Tensor, squared: int | None = None
) -> Attend:
    """The backend that a batch's plan is for; without a plan, and of squared ReLUs of that length, a dense one."""
    if plan is None or squared is not None:
        return dense(dense_mask(start, end), squared)
    return BlockAttend(plan) if isinstance(plan, QueryBlocks) else FlexAttend(plan, start.int(), end.int())


# Probabilities are kept for the backward pass: no more than the seen part of the scores, a run after the other.


def _runs(spans: Tensor, bias: Tensor, heads: int):
    """Of each run: its row, queries and keys as (first, number), mask, and probabilities as (first, shape)."""
    at = 0
    for row, first, last, begin, stop in spans.tolist():
        n, m = last - first, stop - begin
        yield row, (first, n), (begin, m), bias.narrow(0, at, n * m).view(1, n, m), (heads * at, (heads, n, m))
        at += n * m


def _of_run(kept: Tensor, place: tuple[int, tuple[int, ...]]) -> Tensor:
    first, shape = place
    return kept.narrow(0, first, math.prod(shape)).view(shape)


def _by_place(like: Tensor) -> Tensor:
    """Empty, of that shape (B, H, N, D), but in memory as (B, N, H, D): as one matrix product of all heads gives it
    and the next one takes it, so that nothing is copied in between."""
    B, H, N, D = like.shape
    return like.new_empty(B, N, H, D).transpose(1, 2)


def _made(like: Tensor, spans: Tensor) -> Tensor:
    """For what the runs write; 0 at padding, which is in none."""
    made = _by_place(like)
    all_written = int((spans[:, 2] - spans[:, 1]).sum()) == like.shape[0] * like.shape[2]
    return made if all_written else made.zero_()


def _forward(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    heads, scale = q.shape[1], 1 / math.sqrt(q.shape[-1])
    out, kept = _made(q, spans), q.new_empty(heads * len(bias))
    keys = k.transpose(2, 3)
    for row, i, j, mask, place in _runs(spans, bias, heads):
        scores = torch.baddbmm(
            mask.to(q.dtype).expand(heads, -1, -1), q[row].narrow(1, *i), keys[row].narrow(2, *j), alpha=scale
        )
        weights = torch.softmax(scores, -1, out=_of_run(kept, place))
        out[row].narrow(1, *i).copy_(torch.bmm(weights, v[row].narrow(1, *j)))
    return out, kept


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, spans: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    heads, scale = q.shape[1], 1 / math.sqrt(q.shape[-1])
    grad_q, grad_k, grad_v = (_made(x, spans) for x in (q, k, v))
    values, document = v.transpose(2, 3), None
    for row, i, j, _, place in reversed(list(_runs(spans, bias, heads))):
        # A document's last queries see all of its keys; their part is written, others are added.
        adds, document = document == (row, j[0]), (row, j[0])
        weights, g = _of_run(kept, place), grad[row].narrow(1, *i)
        _put(grad_v[row].narrow(1, *j), torch.bmm(weights.transpose(1, 2), g), 1.0, adds)
        inner = torch._softmax_backward_data(torch.bmm(g, values[row].narrow(2, *j)), weights, -1, weights.dtype)
        _put(grad_q[row].narrow(1, *i), torch.bmm(inner, k[row].narrow(1, *j)), scale)
        _put(grad_k[row].narrow(1, *j), torch.bmm(inner.transpose(1, 2), q[row].narrow(1, *i)), scale, adds)
    return grad_q, grad_k, grad_v


def _put(out: Tensor, x: Tensor, scale: float, adds: bool = False) -> None:
    """out = scale x, or out += scale x."""
    if adds:
        out.add_(x, alpha=scale)
    else:
        torch.mul(x, scale, out=out)


class _BlockAttention(torch.autograd.Function):
    """Where nothing is compiled: the first call of an operator of one's own would import the compiler."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        out, kept = _forward(*inputs)
        _keep(ctx, inputs, (out, kept))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(grad, *ctx.saved_tensors), None, None


# Operators of their own, so that a compiler takes a pass over the documents for one node of its graph and does not
# compile anew for every batch.


@torch.library.custom_op("omniloom::block_attention", mutates_args=())
def _block_attention(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _forward(q, k, v, spans, bias)


@_block_attention.register_fake
def _(q, k, v, spans, bias):
    return _by_place(q), q.new_empty(q.shape[1] * bias.shape[0])


@torch.library.custom_op("omniloom::block_attention_backward", mutates_args=())
def _block_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, spans: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, q, k, v, kept, spans, bias)


@_block_attention_backward.register_fake
def _(grad, q, k, v, kept, spans, bias):
    return _by_place(q), _by_place(k), _by_place(v)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, spans, bias = inputs
    ctx.save_for_backward(q, k, v, output[1], spans, bias)


def _compiled_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_block_attention_backward(grad, *ctx.saved_tensors), None, None


_block_attention.register_autograd(_compiled_backward, setup_context=_keep)
