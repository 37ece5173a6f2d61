"""The blocks of the unified transformer. In: hidden states (B, N, width), rotary cosines and sines, and the packed mask
as something to call (`models.unified.attention`). Out: hidden states.

Pre-RMSNorm, grouped-query attention with optional QK-norm (arXiv 2302.05442) and float rotary positions, SwiGLU
(arXiv 2002.05202). Layer weights are laid out so that Llama's load by concatenation (qkv, gate and up).
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.unified.attention import Attend
from models.unified.config import UnifiedConfig
from models.unified.positions import rotate


class LayerCache(Protocol):
    """Keys and values of earlier positions. Takes those of new ones, (B, kv_heads, N, head_dim) each, and
    returns all that the mask may choose from, (B, kv_heads, K, head_dim) each."""

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]: ...


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=config.qkv_bias)
        self.out = nn.Linear(self.heads * self.head_dim, config.width, bias=config.out_bias)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, cache: LayerCache | None) -> Tensor:
        """x (B, N, width); cos, sin (B, 1, N, head_dim / 2)."""
        B, N, _ = x.shape
        qkv = self.qkv(x).view(B, N, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        if cache is not None:
            k, v = cache.update(k, v)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(B, N, -1))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config.width, config.hidden)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, attend, cache)
        return x + self.mlp(self.mlp_norm(x))


class TimeEmbedding(nn.Module):
    """Times in [0, 1], any shape -> (..., width): sinusoids of 1000 t, then an MLP (arXiv 2006.11239)."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float32, device=times.device) / half
        angles = 1000.0 * times.float()[..., None] * torch.exp(-math.log(10000.0) * steps)
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))
