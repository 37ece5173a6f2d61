"""Parts of the unified transformer's blocks that have kinds: norms, and what stands behind or beside attention. In: a
`UnifiedConfig`. Out: modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.fused import swiglu
from omniloom.models.linear import Linear
from omniloom.models.norms import LayerNorm, RMSNorm
from omniloom.models.unified.config import UnifiedConfig


def norm_of(config: UnifiedConfig) -> nn.Module:
    """Over hidden states, (..., width)."""
    kind = LayerNorm if config.norm_kind == "layer" else RMSNorm
    return kind(config.width, config.norm_eps)


class HeadNorm(nn.Module):
    """LayerNorm over the channels of each head, (B, H, N, D), with a weight and bias of each: flat, so that weight
    decay and Muon, which are for matrices, leave them alone."""

    EPS = 1e-5  # Chameleon's, whatever its config says of other norms

    def __init__(self, heads: int, head_dim: int):
        super().__init__()
        self.head_dim = head_dim
        self.weight = nn.Parameter(torch.ones(heads * head_dim))
        self.bias = nn.Parameter(torch.zeros(heads * head_dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.float(), (self.head_dim,), eps=self.EPS)
        weight, bias = (a.view(-1, 1, self.head_dim) for a in (self.weight, self.bias))
        return (normed * weight + bias).to(x.dtype)


def head_norm(config: UnifiedConfig, heads: int) -> nn.Module:
    """Over queries or keys, (B, heads, N, head_dim)."""
    if config.qk_norm_kind == "layer":
        return HeadNorm(heads, config.head_dim)
    if config.qk_norm_kind == "shared_layer":
        return LayerNorm(config.head_dim, config.norm_eps)
    return RMSNorm(config.head_dim, config.norm_eps)


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x)))


class GELUFeedForward(nn.Module):
    """Two Linear with a GELU by its tanh between them (arXiv 1606.08415, section 2)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


def feed_forward_of(config: UnifiedConfig) -> SwiGLU | GELUFeedForward:
    return (GELUFeedForward if config.feed_forward == "gelu" else SwiGLU)(config.width, config.hidden)
