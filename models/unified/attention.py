"""Attention under the packed mask, three ways. In: queries (B, H, N, D), keys and values (B, kv_heads, K, D). Out: the
values mixed by softmax(q k / sqrt(D)) over what each query sees, (B, H, N, D).

    DenseAttend  SDPA under a boolean mask: any shape, any device; generation, whose cache has more keys than queries
    BlockAttend  documents in runs of 128 queries, matrix products alone: training on CPUs, where neither keys of other
                 documents nor most keys ahead are touched. Linear in the documents
    FlexAttend   FlexAttention under a block mask that the loader has made: training on GPUs

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
class BlockAttend:
    """Its output at padding is 0."""

    blocks: QueryBlocks

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (repeated(x, q.shape[1]) for x in (k, v))
        attend = _block_attention if torch.compiler.is_compiling() else _BlockAttention.apply
        return attend(q, k, v, self.blocks.spans, self.blocks.bias)[0]


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


def attend_for(plan: QueryBlocks | BlockTables | None, start: Tensor, end: Tensor) -> Attend:
    """The backend that a batch's plan is for; without a plan the dense one."""
    if plan is None:
        return DenseAttend(dense_mask(start, end))
    return BlockAttend(plan) if isinstance(plan, QueryBlocks) else FlexAttend(plan, start.int(), end.int())


# Probabilities are kept for the backward pass: no more than the seen part of the scores.


def _runs(spans: Tensor, bias: Tensor):
    at = 0
    for row, first, last, begin, stop in spans.tolist():
        size = (last - first) * (stop - begin)
        yield row, slice(first, last), slice(begin, stop), bias[at : at + size].view(1, last - first, stop - begin), at
        at += size


def _forward(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    heads, scale = q.shape[1], 1 / math.sqrt(q.shape[-1])
    out, kept = torch.zeros_like(q), q.new_empty((heads, len(bias)))
    for row, i, j, mask, at in _runs(spans, bias):
        scores = torch.baddbmm(
            mask.to(q.dtype).expand(heads, -1, -1), q[row, :, i], k[row, :, j].transpose(1, 2), alpha=scale
        )
        weights = scores.softmax(dim=-1)
        out[row, :, i] = weights @ v[row, :, j]
        kept[:, at : at + mask.numel()] = weights.flatten(1)
    return out, kept


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, spans: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    heads, scale = q.shape[1], 1 / math.sqrt(q.shape[-1])
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for row, i, j, mask, at in _runs(spans, bias):
        weights, g = kept[:, at : at + mask.numel()].view(heads, *mask.shape[1:]), grad[row, :, i]
        grad_v[row, :, j] += weights.transpose(1, 2) @ g
        inner = torch._softmax_backward_data(g @ v[row, :, j].transpose(1, 2), weights, -1, weights.dtype)
        inner *= scale
        grad_q[row, :, i] = inner @ k[row, :, j]
        grad_k[row, :, j] += inner.transpose(1, 2) @ q[row, :, i]
    return grad_q, grad_k, grad_v


class _BlockAttention(torch.autograd.Function):
    """Where nothing is compiled: the first call of an operator of one's own would import the compiler."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        out, kept = _forward(*inputs)
        ctx.mark_non_differentiable(kept)
        _keep(ctx, inputs, (out, kept))
        return out, kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(grad, *ctx.saved_tensors), None, None


# Operators of their own, so that a compiler takes a pass over the documents for one node of its graph and does not
# compile anew for every batch.


@torch.library.custom_op("omniloom::block_attention", mutates_args=())
def _block_attention(q: Tensor, k: Tensor, v: Tensor, spans: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return _forward(q, k, v, spans, bias)


@_block_attention.register_fake
def _(q, k, v, spans, bias):
    return torch.empty_like(q), q.new_empty((q.shape[1], bias.shape[0]))


@torch.library.custom_op("omniloom::block_attention_backward", mutates_args=())
def _block_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, kept: Tensor, spans: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, q, k, v, kept, spans, bias)


@_block_attention_backward.register_fake
def _(grad, q, k, v, kept, spans, bias):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    q, k, v, spans, bias = inputs
    ctx.save_for_backward(q, k, v, output[1], spans, bias)


def _compiled_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_block_attention_backward(grad, *ctx.saved_tensors), None, None


_block_attention.register_autograd(_compiled_backward, setup_context=_keep)
