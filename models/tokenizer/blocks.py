"""Transformer blocks of OmniTokenizer (arXiv 2406.09399), in their corrected form.

In and out: token grids (B, t, h, w, width), channels last, any h, w and t; B is the batch, t the latent
frame. A spatial block mixes tokens of one frame; a temporal block mixes one place over this and earlier
frames. Nothing here lets a frame see a later one. Against the published code: K and V see the same pre-norm
as Q, rotary positions come after the QK-norm (so that scores depend on distances alone), and the convolution
of a temporal block runs over real time. Errors: none of its own; shapes are checked by `OmniTokenizer`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.tokenizer.config import TokenizerConfig

ROPE_THETA = 10000.0
QK_NORM_SCALE = 8.0  # softmax scale of cosine attention, as published


def rotary_angles(coordinates: Tensor, head_dim: int) -> Tensor:
    """Rotation angles of each complex pair of a head (RoFormer, arXiv 2104.09864, eq. 14, per axis).

    coordinates: (N, axes) float32 positions; pair j belongs to axis j mod axes, so rows and columns
    alternate. Returns (N, head_dim / 2) float32, radians.
    """
    axes = coordinates.shape[-1]
    pairs = head_dim // 2
    index = torch.arange(pairs, device=coordinates.device)
    frequencies = ROPE_THETA ** (-(index // axes).float() * axes / pairs)
    return coordinates[:, index % axes] * frequencies


def rotary_table(angles: Tensor) -> Tensor:
    """(N, pairs) angles -> (2, N, pairs) cosine and sine."""
    return torch.stack((angles.cos(), angles.sin()))


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of x (..., N, head_dim) by `table` (2, N, head_dim / 2)."""
    cos, sin = table.to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def spatial_table(h: int, w: int, head_dim: int, device: torch.device) -> Tensor:
    """Rotary table of an h x w grid in row-major order: (2, h * w, head_dim / 2)."""
    rows = torch.arange(h, device=device, dtype=torch.float32)
    columns = torch.arange(w, device=device, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(h * w, 2)
    return rotary_table(rotary_angles(grid, head_dim))


def temporal_table(t: int, head_dim: int, device: torch.device) -> Tensor:
    """Rotary table of t frames: (2, t, head_dim / 2)."""
    steps = torch.arange(t, device=device, dtype=torch.float32).unsqueeze(-1)
    return rotary_table(rotary_angles(steps, head_dim))


class CausalDepthwiseConv(nn.Module):
    """Depthwise 3x3x3 convolution over (t, h, w); frame i sees frames i-2, i-1 and i.

    (B, t, h, w, C) -> same. The taps on past frames start at zero: a fresh model, or one trained on images
    alone, treats each frame of a video like an image. Three 2-D convolutions, because an image then costs one
    of them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1, 3, 3, 3))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight.data[:, :, -1], std=0.1)

    @torch.no_grad()
    def forget_past_(self) -> None:
        """Set the taps on earlier frames to zero."""
        self.weight[:, :, :-1] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        b, t, h, w, c = x.shape
        frames = x.reshape(b * t, h, w, c).permute(0, 3, 1, 2)  # channels-last in memory, no copy
        out = F.conv2d(frames, self.weight[:, :, 2], self.bias, padding=1, groups=c)
        if t > 1:
            out, frames = out.unflatten(0, (b, t)), frames.unflatten(0, (b, t))
            for delay in range(1, min(3, t)):
                earlier = frames[:, : t - delay].flatten(0, 1)
                past = F.conv2d(earlier, self.weight[:, :, 2 - delay], padding=1, groups=c)
                past = past.unflatten(0, (b, t - delay))
                out = out + F.pad(past, (0, 0, 0, 0, 0, 0, delay, 0))
            out = out.flatten(0, 1)
        return out.permute(0, 2, 3, 1).reshape(b, t, h, w, c)


class FeedForward(nn.Module):
    """LayerNorm, then a bias-free GEGLU (arXiv 2002.05202): (..., C) -> (..., C)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * value)


class Attention(nn.Module):
    """Pre-norm cosine attention over the second-to-last axis: (B, N, C) -> (B, N, C).

    q and k are L2-normalised, scaled per channel and rotated by `table`; `causal` hides later positions.
    """

    def __init__(self, config: TokenizerConfig, causal: bool) -> None:
        super().__init__()
        self.heads, self.head_dim, self.causal = config.heads, config.head_dim, causal
        inner = config.heads * config.head_dim
        self.norm = nn.LayerNorm(config.width)
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.q_scale = nn.Parameter(torch.ones(config.head_dim))
        self.k_scale = nn.Parameter(torch.ones(config.head_dim))
        self.to_out = nn.Linear(inner, config.width, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_dim)).transpose(-2, -3)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = self.norm(x)
        k, v = self.to_kv(x).chunk(2, dim=-1)
        if x.shape[-2] == 1:  # one position attends to itself alone: its value is the answer
            return self.to_out(v)
        q, k, v = self._split(self.to_q(x)), self._split(k), self._split(v)
        q = apply_rotary(F.normalize(q, dim=-1) * self.q_scale, table).to(v.dtype)
        k = apply_rotary(F.normalize(k, dim=-1) * self.k_scale, table).to(v.dtype)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=QK_NORM_SCALE)
        return self.to_out(out.transpose(-2, -3).flatten(-2))


class WindowAttention(nn.Module):
    """Attention within windows of at most `window` x `window` tokens, with Swin's bias.

    (N, h, w, C) -> same. A grid that the window does not divide is padded on the right and below, and no
    token attends to the padding; a grid smaller than the window is one window. Bias: arXiv 2103.14030, eq. 4.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.heads, self.head_dim, self.window = config.heads, config.head_dim, config.window
        inner = config.heads * config.head_dim
        self.norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, config.width)
        table = torch.zeros((2 * config.window - 1) ** 2, config.heads)
        self.relative_position_bias_table = nn.Parameter(table)

    def _bias(self, wh: int, ww: int) -> Tensor:
        """(heads, wh * ww, wh * ww): the learned bias by the offset of query and key."""
        device = self.relative_position_bias_table.device
        rows = torch.arange(wh, device=device).repeat_interleave(ww)
        columns = torch.arange(ww, device=device).repeat(wh)
        span = self.window - 1
        offset_rows = rows[:, None] - rows[None, :] + span
        offset_columns = columns[:, None] - columns[None, :] + span
        index = offset_rows * (2 * span + 1) + offset_columns
        return self.relative_position_bias_table[index].permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, _ = x.shape
        wh, ww = min(self.window, h), min(self.window, w)
        pad_h, pad_w = -h % wh, -w % ww
        qkv = F.pad(self.qkv(self.norm(x)), (0, 0, 0, pad_w, 0, pad_h))
        rows, columns = (h + pad_h) // wh, (w + pad_w) // ww
        qkv = qkv.reshape(n, rows, wh, columns, ww, 3, self.heads, self.head_dim)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)
        qkv = qkv.reshape(3, n, rows * columns, self.heads, wh * ww, self.head_dim)
        bias = self._bias(wh, ww)
        if pad_h or pad_w:
            real = F.pad(torch.ones(h, w, device=x.device, dtype=torch.bool), (0, pad_w, 0, pad_h))
            real = real.reshape(rows, wh, columns, ww).transpose(1, 2)
            real = real.reshape(rows * columns, 1, 1, wh * ww)
            bias = bias.masked_fill(~real, float("-inf"))
        q, k, v = qkv.unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        out = out.reshape(n, rows, columns, self.heads, wh, ww, self.head_dim).permute(0, 1, 4, 2, 5, 3, 6)
        return self.proj(out.reshape(n, rows * wh, columns * ww, -1)[:, :h, :w])


class PlainBlock(nn.Module):
    """Convolution, attention over space or (`temporal`) time, and feed-forward, each residual."""

    def __init__(self, config: TokenizerConfig, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.peg = CausalDepthwiseConv(config.width)
        self.attention = Attention(config, causal=temporal)
        self.feedforward = FeedForward(config.width, config.inner_width)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.peg(x)
        b, t, h, w, c = x.shape
        if self.temporal:
            places = x.permute(0, 2, 3, 1, 4).reshape(b * h * w, t, c)
            mixed = self.attention(places, table).reshape(b, h, w, t, c).permute(0, 3, 1, 2, 4)
        else:
            mixed = self.attention(x.reshape(b * t, h * w, c), table).reshape(b, t, h, w, c)
        x = x + mixed
        return x + self.feedforward(x)


class WindowBlock(nn.Module):
    """Window attention and feed-forward, each residual."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.attention = WindowAttention(config)
        self.feedforward = FeedForward(config.width, config.inner_width)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.attention(x.flatten(0, 1)).reshape(x.shape)
        return x + self.feedforward(x)


class Stack(nn.Module):
    """A row of blocks and a final LayerNorm: (B, t, h, w, C) -> same.

    kinds: one letter a block, `t` or `w` for spatial blocks, `c` for causal temporal ones (never mixed).
    With `activation_checkpointing` set, a training pass keeps only each block's input.
    """

    def __init__(self, config: TokenizerConfig, kinds: str) -> None:
        super().__init__()
        self.temporal = "c" in kinds
        self.head_dim = config.head_dim
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(
            WindowBlock(config) if kind == "w" else PlainBlock(config, temporal=kind == "c") for kind in kinds
        )
        self.norm = nn.LayerNorm(config.width)

    def forget_past_(self) -> None:
        """Make the convolutions of every block see the current frame alone."""
        for layer in self.layers:
            if isinstance(layer, PlainBlock):
                layer.peg.forget_past_()

    def forward(self, x: Tensor) -> Tensor:
        _, t, h, w, _ = x.shape
        if self.temporal:
            table = temporal_table(t, self.head_dim, x.device)
        else:
            table = spatial_table(h, w, self.head_dim, x.device)
        for layer in self.layers:
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, table, use_reentrant=False)
            else:
                x = layer(x, table)
        return self.norm(x)
