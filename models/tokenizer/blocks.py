"""Transformer blocks of OmniTokenizer (arXiv 2406.09399), in their corrected form.

In and out: token grids (t, B, h, w, width), time first and channels last, any h, w and t; B is the batch, t the
latent frame. Time first, because a shift in time is then a slice of memory and attention over time needs no
transposed copy. A spatial block mixes tokens of one frame; a temporal block mixes one place over this and the
`temporal_window - 1` frames before it. Nothing here lets a frame see a later one. A video may come in chunks: then
each block takes a `BlockMemory` and returns the next one.
Against the published code: K and V see the same pre-norm as Q, rotary positions come after the QK-norm (so that
scores depend on distances alone), and the convolution of a temporal block runs over real time.
Errors: none of its own; shapes are checked by `OmniTokenizer`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omniloom.models.norms import LayerNorm
from omniloom.models.tokenizer.config import RAEConfig, TiTokConfig, TokenizerConfig
from omniloom.models.tokenizer.streaming import BlockMemory, remember

ROPE_THETA = 10000.0
QK_NORM_SCALE = 8.0  # softmax scale of cosine attention, as published
PAST_FRAMES = 2  # that the convolution sees
MIN_QUERIES = 16  # of temporal attention at once: below, a loop's step costs more than masked scores


def rotary_angles(coordinates: Tensor, head_dim: int) -> Tensor:
    """Rotation angles of each complex pair of a head (RoFormer, arXiv 2104.09864, eq. 14, per axis).

    coordinates: (N, axes) floating positions; pair j belongs to axis j mod axes, so rows and columns
    alternate. Returns (N, head_dim / 2) of the same dtype, radians.
    """
    axes = coordinates.shape[-1]
    pairs = head_dim // 2
    index = torch.arange(pairs, device=coordinates.device)
    frequencies = ROPE_THETA ** (-(index // axes).to(coordinates.dtype) * axes / pairs)
    return coordinates[:, index % axes] * frequencies


def rotary_table(angles: Tensor) -> Tensor:
    """(N, pairs) angles -> (2, N, pairs) float32, cosine and sine."""
    return torch.stack((angles.cos(), angles.sin())).float()


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring channel pairs of x (..., N, head_dim) by `table` (2, N, head_dim / 2), as published."""
    cos, sin = table.to(x.dtype)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def spatial_table(h: int, w: int, head_dim: int, device: torch.device) -> Tensor:
    """Rotary table of an h x w grid in row-major order: (2, h * w, head_dim / 2)."""
    rows = torch.arange(h, device=device, dtype=torch.float32)
    columns = torch.arange(w, device=device, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(h * w, 2)
    return rotary_table(rotary_angles(grid, head_dim))


def temporal_table(start: int, t: int, head_dim: int, device: torch.device) -> Tensor:
    """Rotary table of frames start ... start + t - 1: (2, t, head_dim / 2).

    The angles are float64: an hour into a video float32 would be off by 0.002 radians.
    """
    steps = torch.arange(start, start + t, device=device, dtype=torch.float64).unsqueeze(-1)
    return rotary_table(rotary_angles(steps, head_dim))


class CausalDepthwiseConv(nn.Module):
    """Depthwise 3x3x3 convolution over (t, h, w); frame i sees frames i-2, i-1 and i.

    (t, B, h, w, C) and up to two frames before it -> (t, B, h, w, C). The taps on past frames start at zero: a
    fresh model, or one trained on images alone, treats each frame of a video like an image. Three 2-D
    convolutions, because an image then costs one of them.
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

    def _convolve(self, x: Tensor, delay: int) -> Tensor:
        """The taps on frames `delay` steps back, over each frame of x."""
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # channels-last in memory, no copy
        bias = None if delay else self.bias
        out = F.conv2d(frames, self.weight[:, :, PAST_FRAMES - delay], bias, padding=1, groups=x.shape[-1])
        return out.permute(0, 2, 3, 1).reshape(x.shape)

    def forward(self, x: Tensor, past: Tensor | None = None) -> Tensor:
        out = self._convolve(x, 0)
        known = 0 if past is None else len(past)
        joined = x if past is None else torch.cat((past, x))
        for delay in range(1, 1 + min(PAST_FRAMES, len(joined) - 1)):
            first = max(0, known - delay)  # in `joined`: the earliest frame that one of x sees at this delay
            delayed = self._convolve(joined[first : len(joined) - delay], delay)
            out[len(x) - len(delayed) :] += delayed
        return out


class FeedForward(nn.Module):
    """LayerNorm, then a bias-free GEGLU (arXiv 2002.05202): (..., C) -> (..., C)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * value)


class FusedQKV(nn.Linear):
    """One bias-free product for queries, keys and values; `values_only` multiplies by the last third alone."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(width, 3 * inner, bias=False)

    def forward(self, x: Tensor, values_only: bool = False) -> Tensor:
        return F.linear(x, self.weight[-self.out_features // 3 :] if values_only else self.weight)


class Attention(nn.Module):
    """Pre-norm cosine attention, all to all, over axis 1: (B, N, C), table (2, N, head_dim / 2) -> (B, N, C).

    q and k are L2-normalised, scaled per channel, and rotated in pairs (j, j + head_dim / 2) by `table`.
    """

    def __init__(self, config: TokenizerConfig | TiTokConfig | RAEConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        inner = config.heads * config.head_dim
        self.norm = LayerNorm(config.width)
        self.to_qkv = FusedQKV(config.width, inner)
        self.q_scale = nn.Parameter(torch.ones(config.head_dim))
        self.k_scale = nn.Parameter(torch.ones(config.head_dim))
        self.to_out = nn.Linear(inner, config.width, bias=False)

    def _heads(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v (..., heads, head_dim) of the normalised x (..., C); table (2, ..., head_dim / 2)."""
        qkv = self.to_qkv(x).unflatten(-1, (3, self.heads, self.head_dim))
        qk = qkv[..., :2, :, :]
        # The per-channel scales go into the table: rotate(scale * x) = x * (cos * scale) + partner(x * scale) * sin.
        scale = torch.stack((self.q_scale, self.k_scale)).unsqueeze(1)
        cos, sin = table.unsqueeze(-2).unsqueeze(-2)
        cos = (torch.cat((cos, cos), -1) * scale).to(qk.dtype)
        sin = (torch.cat((-sin, sin), -1) * scale.roll(self.head_dim // 2, -1)).to(qk.dtype)
        length = torch.linalg.vector_norm(qk, dim=-1, keepdim=True).clamp(min=1e-6)
        unit = qk * length.reciprocal().to(qk.dtype)
        q, k = (unit * cos + unit.roll(self.head_dim // 2, -1) * sin).unbind(-3)
        return q, k, qkv[..., 2, :, :]

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = self.norm(x)
        if x.shape[1] == 1:  # one position attends to itself alone: its value is the answer
            return self.to_out(self.to_qkv(x, values_only=True))
        q, k, v = (part.transpose(1, 2) for part in self._heads(x, table))
        out = F.scaled_dot_product_attention(q, k, v, scale=QK_NORM_SCALE)
        return self.to_out(out.transpose(1, 2).flatten(2))


class TokenBlock(nn.Module):
    """Attention over all tokens and feed-forward, each residual: (B, N, width) -> same."""

    def __init__(self, config: TiTokConfig | RAEConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.feedforward = FeedForward(config.width, config.inner_width)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.attention(x, table)
        return x + self.feedforward(x)


class TemporalAttention(Attention):
    """Causal, over axis 0: each token attends to its place in its own and the `temporal_window - 1` frames before.

    (t, n, C), table (2, t, head_dim / 2) -> (t, n, C); n is batch times places.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.window = config.temporal_window

    def forward(  # type: ignore[override]
        self, x: Tensor, table: Tensor, memory: BlockMemory | None = None
    ) -> tuple[Tensor, BlockMemory | None]:
        x = self.norm(x)
        if memory is None and len(x) == 1:
            return self.to_out(self.to_qkv(x, values_only=True)), None
        q, k, v = self._heads(x, table.unsqueeze(2))
        if memory is not None:
            keep = self.window - 1 if self.window else None
            k, kept_keys = remember(memory.keys, k, keep)
            v, kept_values = remember(memory.values, v, keep)
            memory = memory._replace(keys=kept_keys, values=kept_values)
        return self.to_out(banded_attention(q, k, v, self.window).flatten(2)), memory


def banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention over axis 0 in which a query sees its own and the `window - 1` steps before (0: all).

    q: (t, n, heads, d); k, v: (p + t, n, heads, d), query i standing at key p + i. Returns (t, n, heads, d). Long
    sequences go in blocks of queries, each with its keys: time and memory are O(t * window), not O(t^2).
    """
    t, steps = len(q), len(k)
    window = window or steps
    if steps <= window + MIN_QUERIES:
        return _attend(q, k, v, steps - t, window)
    size = max(window, MIN_QUERIES)
    blocks = []
    for first in range(0, t, size):
        last = min(first + size, t)
        lowest = max(0, steps - t + first - window + 1)
        keys = slice(lowest, steps - t + last)
        blocks.append(_attend(q[first:last], k[keys], v[keys], steps - t + first - lowest, window))
    return torch.cat(blocks)


def _attend(q: Tensor, k: Tensor, v: Tensor, past: int, window: int) -> Tensor:
    """`banded_attention` with all scores at once."""
    t, steps = len(q), len(k)
    q, k, v = (part.permute(1, 2, 0, 3) for part in (q, k, v))
    if past == 0 and steps <= window:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=QK_NORM_SCALE)
    else:
        distance = torch.arange(past, past + t, device=q.device)[:, None] - torch.arange(steps, device=q.device)
        seen = (distance >= 0) & (distance < window)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=QK_NORM_SCALE)
    return out.permute(2, 0, 1, 3)


class WindowAttention(nn.Module):
    """Attention within windows of at most `window` x `window` tokens, with Swin's bias.

    (frames, h, w, C) -> same. A grid that the window does not divide is padded on the right and below, and no
    token attends to the padding; a grid smaller than the window is one window. Bias: arXiv 2103.14030, eq. 4.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.heads, self.head_dim, self.window = config.heads, config.head_dim, config.window
        inner = config.heads * config.head_dim
        self.norm = LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, config.width)
        side = 2 * config.window - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(side**2, config.heads))
        place = torch.arange(config.window)
        offset = place[:, None] - place[None, :] + config.window - 1
        index = offset[:, None, :, None] * side + offset[None, :, None, :]
        self.register_buffer("offsets", index, persistent=False)  # (query row, query column, key row, key column)

    def _bias(self, wh: int, ww: int) -> Tensor:
        """(heads, wh * ww, wh * ww): the learned bias by the offset of query and key."""
        index = self.offsets[:wh, :ww, :wh, :ww].reshape(wh * ww, wh * ww)
        return self.relative_position_bias_table[index].permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        wh, ww = min(self.window, h), min(self.window, w)
        pad_h, pad_w = -h % wh, -w % ww
        rows, columns = (h + pad_h) // wh, (w + pad_w) // ww
        x = F.pad(self.norm(x), (0, 0, 0, pad_w, 0, pad_h)) if pad_h or pad_w else self.norm(x)
        x = x.reshape(n, rows, wh, columns, ww, c).transpose(2, 3).reshape(-1, wh * ww, c)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        bias = self._bias(wh, ww).to(q.dtype)
        if pad_h or pad_w:
            real = F.pad(torch.ones(h, w, device=x.device, dtype=torch.bool), (0, pad_w, 0, pad_h))
            real = real.reshape(rows, wh, columns, ww).transpose(1, 2).reshape(rows * columns, 1, 1, wh * ww)
            bias = bias.masked_fill(~real, float("-inf")).repeat(n, 1, 1, 1)
        else:
            bias = bias.unsqueeze(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        out = self.proj(out).reshape(n, rows, columns, wh, ww, c).transpose(2, 3)
        return out.reshape(n, rows * wh, columns * ww, c)[:, :h, :w]


class PlainBlock(nn.Module):
    """Convolution, attention over space or (`temporal`) time, and feed-forward, each residual."""

    def __init__(self, config: TokenizerConfig, temporal: bool) -> None:
        super().__init__()
        self.temporal = temporal
        self.peg = CausalDepthwiseConv(config.width)
        self.attention = TemporalAttention(config) if temporal else Attention(config)
        self.feedforward = FeedForward(config.width, config.inner_width)

    def forward(self, x: Tensor, table: Tensor, memory: BlockMemory | None = None) -> tuple[Tensor, BlockMemory | None]:
        t, b, h, w, c = x.shape
        past = None
        if memory is not None:
            past = memory.frames
            memory = memory._replace(frames=remember(past, x, PAST_FRAMES)[1])
        x = x + self.peg(x, past)
        if self.temporal:
            mixed, memory = self.attention(x.reshape(t, b * h * w, c), table, memory)
        else:
            mixed = self.attention(x.reshape(t * b, h * w, c), table)
        x = x + mixed.reshape(x.shape)
        return x + self.feedforward(x), memory


class WindowBlock(nn.Module):
    """Window attention and feed-forward, each residual; it has no memory."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.attention = WindowAttention(config)
        self.feedforward = FeedForward(config.width, config.inner_width)

    def forward(self, x: Tensor, table: Tensor, memory: BlockMemory | None = None) -> tuple[Tensor, BlockMemory | None]:
        x = x + self.attention(x.flatten(0, 1)).reshape(x.shape)
        return x + self.feedforward(x), memory


class Stack(nn.Module):
    """A row of blocks and a final LayerNorm: (t, B, h, w, C) -> same.

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
        self.norm = LayerNorm(config.width)

    def forget_past_(self) -> None:
        """Make the convolutions of every block see the current frame alone."""
        for layer in self.layers:
            if isinstance(layer, PlainBlock):
                layer.peg.forget_past_()

    def _table(self, x: Tensor, start: int) -> Tensor:
        t, _, h, w, _ = x.shape
        if self.temporal:
            return temporal_table(start, t, self.head_dim, x.device)
        return spatial_table(h, w, self.head_dim, x.device)

    def forward(self, x: Tensor, start: int = 0, memories: list[BlockMemory] | None = None) -> Tensor:
        """memories: one a block, replaced in place by what the next chunk needs; start: latent frames before x."""
        table = self._table(x, start)
        for i, layer in enumerate(self.layers):
            memory = None if memories is None else memories[i]
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x, memory = checkpoint(layer, x, table, memory, use_reentrant=False)
            else:
                x, memory = layer(x, table, memory)
            if memories is not None:
                memories[i] = memory
        return self.norm(x)
