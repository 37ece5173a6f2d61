"""Transformer blocks of OmniTokenizer (arXiv 2406.09399) as its published code computes them.

In and out: token grids (B, t, h, w, width), channels last; B is the batch, t the latent frame. `blocks` has the
corrected form. What is kept here because released weights were trained with it: K and V read the stream before
the norm, rotary positions come before the L2-norm and its scales and see a place only by its number in a square,
and the convolution of a temporal block reads tokens that lie in memory as (b, h, w, t) as if they lay as
(b, t, h, w), so that late frames reach early ones. What is not kept: the cost. Feed-forward widths are padded
with zeros to a multiple that matrix products like, attention over one position is its value, a convolution over
one frame is 2-D, and a position bias is computed once per offset instead of once per pair of places.
Errors: `ValueError` for a grid that the published code cannot run.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omniloom.models.norms import LayerNorm
from omniloom.models.tokenizer.blocks import QK_NORM_SCALE, WindowAttention, apply_rotary, rotary_angles, rotary_table
from omniloom.models.tokenizer.config import TokenizerConfig

WIDTH_MULTIPLE = 32  # an fp32 product with 2 * 1376 columns runs 1.4 times as fast a flop as one with 2 * 1365
SCORES_AT_ONCE = 2**24  # entries of the score table held in memory where no fused kernel serves
ROWS_AT_ONCE = 2048  # tokens in a feed-forward at once outside training, on CPU: its inner values stay in cache


class GammaNorm(nn.Module):
    """LayerNorm whose shift is a buffer, zero in all released weights: (..., C) -> (..., C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta).to(x.dtype)


class PositionConv(nn.Module):
    """Depthwise 3x3x3 convolution over (t, h, w), padded in time as (2, 0) or, not causal, as (1, 1).

    (B, t, h, w, C) -> same. Written as a 2-D convolution a tap in time, because an image then needs one of them.
    """

    def __init__(self, width: int, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.offsets = (-2, -1, 0) if causal else (-1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, c = x.shape
        frames = x.reshape(b * t, h, w, c).permute(0, 3, 1, 2)  # channels-last in memory, no copy
        present = self.offsets.index(0)
        out = F.conv2d(frames, self.weight[:, :, present], self.bias, padding=1, groups=c)
        out, frames = out.unflatten(0, (b, t)), frames.unflatten(0, (b, t))
        for tap, offset in enumerate(self.offsets):
            if offset == 0 or abs(offset) >= t:
                continue
            source, target = (slice(0, t + offset), slice(-offset, t))
            if offset > 0:
                source, target = slice(offset, t), slice(0, t - offset)
            moved = F.conv2d(frames[:, source].flatten(0, 1), self.weight[:, :, tap], padding=1, groups=c)
            out[:, target] += moved.unflatten(0, (b, t - abs(offset)))
        return out.permute(0, 1, 3, 4, 2)


class FeedForward(nn.Module):
    """x + GEGLU of LayerNorm(x), without biases: (..., C) -> (..., C).

    `up` holds the rows of the value and then those of the gate, `inner` of each and zeros up to `padded`; the
    zeros get no gradient, so they stay.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inner, self.padded = inner, -(-inner // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        self.norm = LayerNorm(width)
        self.up = nn.Linear(width, 2 * self.padded, bias=False)
        self.down = nn.Linear(self.padded, width, bias=False)
        self.num_padding = 3 * width * (self.padded - inner)

    @torch.no_grad()
    def clear_padding_(self) -> None:
        """Set the padding to zero, as after an initialisation that filled it."""
        self.up.weight.unflatten(0, (2, self.padded))[:, self.inner :] = 0.0
        self.down.weight[:, self.inner :] = 0.0

    def _inner(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * value)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
            return x + self._inner(x)
        flat = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(flat)
        for start in range(0, len(flat), ROWS_AT_ONCE):
            rows = flat[start : start + ROWS_AT_ONCE]
            torch.add(rows, self._inner(rows), out=out[start : start + ROWS_AT_ONCE])
        return out.reshape(x.shape)


class PositionBias(nn.Module):
    """Continuous position bias (Swin v2, arXiv 2111.09883, section 3.3): an MLP on signed-log offsets.

    Called with the side s of a square: (heads, s^2, s^2). The MLP sees each of the (2 s - 1)^2 offsets once.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, heads)])
        self._cached: tuple[tuple, Tensor] | None = None

    def _offsets(self, side: int) -> Tensor:
        """(heads, 2 s - 1, 2 s - 1), at [s - 1 + row offset, s - 1 + column offset]."""
        weight = self.net[0].weight
        steps = torch.arange(1 - side, side, device=weight.device)
        steps = torch.sign(steps) * torch.log(steps.abs() + 1)
        out = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).to(weight.dtype)
        for layer in self.net[:-1]:
            out = F.leaky_relu(layer(out), 0.1)
        return self.net[-1](out).permute(2, 0, 1)

    def train(self, mode: bool = True) -> PositionBias:
        self._cached = None  # an optimizer may write to weights without raising their version
        return super().train(mode)

    def _frozen_offsets(self, side: int) -> Tensor:
        """`_offsets`, kept until the weights change; in evaluation alone."""
        weights = list(self.parameters())
        live = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if live or any(weight.is_inference() for weight in weights):
            return self._offsets(side)
        key = (side, *((weight.data_ptr(), weight.dtype, weight._version) for weight in weights))
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, self._offsets(side))
        return self._cached[1]

    def forward(self, side: int) -> Tensor:
        windows = self._frozen_offsets(side).unfold(1, side, 1).unfold(2, side, 1)
        # [head, row of query, column of query, s - 1 - row of key, s - 1 - column of key]
        return windows.flip(3, 4).reshape(len(windows), side * side, side * side)


@lru_cache(maxsize=8)
def square_table(n: int, head_dim: int, device: torch.device) -> Tensor:
    """Rotary table (2, n, head_dim / 2) of n places, counted along the rows of a square of side int(sqrt(n)):
    column and row in turn. A grid that is no square gets the same numbers, as published."""
    with torch.inference_mode(False):  # kept for later calls, which may train
        place, side = torch.arange(n, device=device), math.isqrt(n)
        columns_rows = torch.stack((place % side, place // side), dim=-1).float()
        return rotary_table(rotary_angles(columns_rows, head_dim))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """`apply_rotary` on float32, as one complex product where it runs eagerly: compilers know no complex numbers."""
    if torch.compiler.is_compiling():
        return apply_rotary(x, table)
    turns = torch.complex(table[0], table[1])
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)


@lru_cache(maxsize=8)
def causal_mask(t: int, heads: int, alibi: bool, device: torch.device) -> Tensor:
    """(heads or 1, t, t) to be added to scores: -inf on later frames and, with `alibi`, minus the distance times
    the head's slope (arXiv 2108.12409, section 3)."""
    with torch.inference_mode(False):
        frames = torch.arange(t, device=device)
        distance = (frames[None, :] - frames[:, None]).float()
        mask = torch.zeros_like(distance).masked_fill(distance > 0, float("-inf")).unsqueeze(0)
        if alibi:
            mask = mask - distance.abs() * alibi_slopes(heads).to(device)[:, None, None]
        return mask


def alibi_slopes(heads: int) -> Tensor:
    """(heads,) slopes: 2^(-8 i / heads) for a power of two, else those of the power below, then every other one of
    the power above."""
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    slopes += [2.0 ** (-4.0 * i / power) for i in range(1, 2 * (heads - power), 2)]
    return torch.tensor(slopes)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(8 q k^T + mask) v: (B, heads, n, d) each, the mask (heads, n, n); or `causal` and no mask."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.is_grad_enabled():
        mask = None if mask is None else mask.to(q.dtype).unsqueeze(0)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=QK_NORM_SCALE)
    # Plain products in bf16 take 2/3 of the fused kernel's time on CPU; a clip's scores at once would be large.
    if causal:
        mask = causal_mask(q.shape[2], q.shape[1], False, q.device)
    mask = None if mask is None else mask.to(q.dtype)
    out = torch.empty_like(v)
    step = max(1, SCORES_AT_ONCE // (q.shape[1] * q.shape[2] ** 2))
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        scores = (q[part] * QK_NORM_SCALE) @ k[part].transpose(-1, -2)
        out[part] = (scores if mask is None else scores.add_(mask)).softmax(dim=-1) @ v[part]
    return out


class Attention(nn.Module):
    """Cosine attention over the second-to-last axis: (B, n, C) -> (B, n, C).

    Only q is made of the normalised stream. `context_norm`, and in temporal blocks `bias`, are in the published
    weights and are never used: frozen here, so that they are counted and exported.
    """

    def __init__(self, config: TokenizerConfig, temporal: bool) -> None:
        super().__init__()
        self.heads, self.temporal = config.heads, temporal
        self.positions, self.path = config.positions, config.rel_bias
        self.causal = temporal and config.causal_attention
        inner = config.heads * config.head_dim
        self.norm = GammaNorm(config.width)
        self.context_norm = GammaNorm(config.width).requires_grad_(False)
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(config.head_dim))
        self.k_scale = nn.Parameter(torch.ones(config.head_dim))
        self.to_out = nn.Linear(inner, config.width, bias=False)
        if temporal or config.positions == "rel":
            used = not temporal and config.rel_bias == "einsum"
            self.bias = PositionBias(config.width, config.heads).requires_grad_(used)

    def _unit(self, x: Tensor, table: Tensor | None) -> Tensor:
        """(B, n, heads * d) -> (B, heads, n, d) float32: rotated, then of unit length."""
        x = x.unflatten(-1, (self.heads, -1)).transpose(1, 2).float()
        return F.normalize(x if table is None else rotate(x, table), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        if n == 1:  # one position attends to itself alone
            values = self.to_kv.weight[self.to_kv.out_features // 2 :]
            return self.to_out(F.linear(x, values))
        q = self.to_q(self.norm(x))
        k, v = self.to_kv(x).chunk(2, dim=-1)
        spatial = not self.temporal
        table = square_table(n, len(self.q_scale), x.device) if spatial and self.positions == "rope" else None
        # Scores read q and k through their products alone: both scales go to k.
        q, k = self._unit(q, table).to(v.dtype), (self._unit(k, table) * (self.q_scale * self.k_scale)).to(v.dtype)
        mask = None
        if self.path == "einsum" and self.positions == "rel" and spatial:
            side = math.isqrt(n)
            if side * side != n:
                raise ValueError(f"grid: the published position bias needs a square number of places, got {n}")
            mask = self.bias(side)
        elif self.path == "einsum" and self.causal:
            mask = causal_mask(n, self.heads, True, x.device)
        v = v.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = attend(q, k, v, mask, self.causal and mask is None)
        return self.to_out(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention (plain ones after a convolution) and feed-forward, each residual: (B, t, h, w, C) -> same.

    A temporal block takes and gives (B, h, w, t, C).
    """

    def __init__(self, config: TokenizerConfig, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "w":
            attention: Any = WindowAttention(replace(config, head_dim=config.width // config.heads))
            attention.norm = GammaNorm(config.width)
        else:
            self.peg = PositionConv(config.width, config.causal_peg)
            attention = Attention(config, temporal=kind == "c")
        self.attention = attention
        self.feedforward = FeedForward(config.width, config.inner_width)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        if self.kind == "w":
            return self.feedforward(x + self.attention(x.flatten(0, 1)).reshape(shape))
        if self.kind == "c":
            b, h, w, t, c = shape
            x = x + self.peg(x.reshape(b, t, h, w, c)).reshape(shape)  # not a transposition: see the module's head
            return self.feedforward(x + self.attention(x.flatten(0, 2)).reshape(shape))
        x = x + self.peg(x)
        return self.feedforward(x + self.attention(x.flatten(0, 1).flatten(1, 2)).reshape(shape))


class OfficialStack(nn.Module):
    """A row of blocks and a final norm: (B, t, h, w, C) -> same. kinds: one letter a block, `t` plain or `w` window
    attention in space, `c` attention in time. `activation_checkpointing` as in `blocks.Stack`."""

    def __init__(self, config: TokenizerConfig, kinds: str) -> None:
        super().__init__()
        self.kinds, self.window = kinds, config.window
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(Block(config, kind) for kind in kinds)
        self.norm = GammaNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:4]
        if "w" in self.kinds and (h != w or h % self.window):
            raise ValueError(f"grid: published windows need a square of a multiple of {self.window}, got {h}x{w}")
        temporal = "c" in self.kinds
        x = x.permute(0, 2, 3, 1, 4).contiguous() if temporal else x.contiguous()
        for layer in self.layers:
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        x = self.norm(x)
        return x.permute(0, 3, 1, 2, 4) if temporal else x
