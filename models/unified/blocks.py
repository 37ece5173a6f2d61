"""The blocks of the unified transformer. In: hidden states (B, N, width), rotary cosines and sines, and the packed mask
as something to call (`models.unified.attention`). Out: hidden states.

    Block     a norm before or behind each part, grouped-query attention with optional QK-norm (arXiv 2302.05442) and
              float rotary positions, SwiGLU (arXiv 2002.05202) or a GELU (`models.unified.parts`), behind or beside
              attention. Weights are laid out so that Llama's load by concatenation (qkv, gate and up)
              A block that does not attend has a gated linear recurrence there (`models.unified.recurrence`)
    GAUBlock  pre-RMSNorm and a gated attention unit (arXiv 2202.10447) in place of attention and SwiGLU

Both take the hidden states of an earlier block where they were built with a skip, and a modulation by the times of
pictures; a Block may have norms, SwiGLU and projections of its own for pictures (`models.unified.places`).
"""

from __future__ import annotations

import math
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.fused import rotate, rotated_heads
from omniloom.models.linear import Linear
from omniloom.models.norms import RMSNorm
from omniloom.models.unified.attention import Attend
from omniloom.models.unified.config import TIME_SCALE, UnifiedConfig
from omniloom.models.unified.parts import feed_forward_of, head_norm, norm_of
from omniloom.models.unified.places import Modulation, Places
from omniloom.models.unified.recurrence import Recurrence, StateCache


class LayerCache(Protocol):
    """Keys and values of earlier positions. Takes those of new ones, (B, kv_heads, N, head_dim) each, and
    returns all that the mask may choose from, (B, kv_heads, K, head_dim) each."""

    def update(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]: ...


class Attention(nn.Module):
    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = Linear(config.width, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=config.qkv_bias)
        self.out = Linear(self.heads * self.head_dim, config.width, bias=config.out_bias)
        self.qk_norm, self.query_scale = config.qk_norm, config.query_scale
        if config.qk_norm:
            self.q_norm, self.k_norm = (head_norm(config, heads) for heads in (self.heads, self.kv_heads))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, cache: LayerCache | None) -> Tensor:
        """x (B, N, width); cos, sin (B, 1, N, rotary_dim / 2)."""
        B, N, _ = x.shape
        qkv = self.qkv(x)
        cos, sin = cos.to(qkv.dtype), sin.to(qkv.dtype)
        if self.qk_norm:
            heads = qkv.view(B, N, -1, self.head_dim).transpose(1, 2)
            q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
            q, k = turned(self.q_norm(q), cos, sin), turned(self.k_norm(k), cos, sin)
        else:
            q, k, v = self.turned_heads(qkv, cos, sin)
        if self.query_scale != 1:
            q = q * self.query_scale
        if cache is not None:
            k, v = cache.update(k, v)
        return self.out(attend(q, k, v).transpose(1, 2).reshape(B, N, -1))

    def turned_heads(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, (heads + 2 kv_heads) head_dim) -> queries and keys, turned, and values, each (B, heads or kv_heads, N,
        head_dim)."""
        if 2 * cos.shape[-1] == self.head_dim:
            return rotated_heads(qkv, cos, sin, self.heads, self.kv_heads)
        heads = qkv.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        return turned(q, cos, sin), turned(k, cos, sin), v

    def projected(self, x: Tensor) -> Tensor:
        """(n, width) -> (n, (heads + 2 kv_heads) head_dim), queries and keys normed and not turned."""
        qkv = self.qkv(x)
        if not self.qk_norm:
            return qkv
        q, k, v = qkv.unflatten(-1, (-1, self.head_dim)).split((self.heads, self.kv_heads, self.kv_heads), dim=-2)
        return torch.cat((self.q_norm(q), self.k_norm(k), v), dim=-2).flatten(-2)

    def beside(
        self,
        visual: Attention,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        cache: LayerCache | None,
        places: Places,
    ) -> Tensor:
        """As `forward`, with the projections and norms of `visual` at pictures' places, which attend with the
        others."""
        qkv = places.split(x, self.projected, visual.projected)
        q, k, v = self.turned_heads(qkv, cos.to(qkv.dtype), sin.to(qkv.dtype))
        if self.query_scale != 1:
            q = q * self.query_scale
        if cache is not None:
            k, v = cache.update(k, v)
        return places.split(attend(q, k, v).transpose(1, 2).flatten(2), self.out, visual.out)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate`, of as many of the first channels as there are angles for."""
    count = 2 * cos.shape[-1]
    if count == x.shape[-1]:
        return rotate(x, cos, sin)
    return torch.cat((rotate(x[..., :count], cos, sin), x[..., count:]), dim=-1)


class GatedAttentionUnit(nn.Module):
    """out(u * attend(q, k, v)): with z = silu(W_z x) of one head's width, v = silu(W_v x) and the gate u = silu(W_u x)
    of e = `hidden` channels each, in e / head_dim heads. Queries and keys of a head are z, scaled and offset channel
    by channel, then turned.

    Scores pass a softmax, which is right for documents of any length in one row: its weights sum to 1 whatever a query
    sees. The paper's squared ReLUs over the length are right at that length alone, `gau_length` where it is set. Two
    units of e = 2 width have one Llama block's parameters, and their heads together attend four times as much.
    """

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.head_dim, self.hidden, self.query_scale = config.head_dim, config.hidden, config.query_scale
        self.zvu = Linear(config.width, self.head_dim + 2 * self.hidden, bias=config.qkv_bias)
        # Of one axis, so that weight decay, which is for matrices, leaves them alone.
        self.scale, self.offset = (nn.Parameter(torch.empty(2 * self.hidden)) for _ in range(2))
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.out = Linear(self.hidden, config.width, bias=config.out_bias)

    def reset_scales(self) -> None:
        """Heads differ from the start; queries and keys are as large as z."""
        nn.init.normal_(self.scale)
        nn.init.zeros_(self.offset)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, cache: LayerCache | None) -> Tensor:
        """As `Attention`."""
        B, N, _ = x.shape
        z, v, u = F.silu(self.zvu(x)).split((self.head_dim, self.hidden, self.hidden), dim=-1)
        scale, offset = (a.to(z.dtype).view(-1, 1, self.head_dim) for a in (self.scale, self.offset))
        q, k = (z[:, None] * scale + offset).chunk(2, dim=1)
        v = v.view(B, N, -1, self.head_dim).transpose(1, 2)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        if self.query_scale != 1:
            q = q * self.query_scale
        if cache is not None:
            k, v = cache.update(k, v)
        return self.out(u * attend(q, k, v).transpose(1, 2).reshape(B, N, -1))


class _MayMerge(nn.Module):
    """A block whose input may take in an earlier block's: x + W [x, earlier], W = 0 at the start. U-ViT's Linear on
    both (arXiv 2209.12152, section 3.1) is 1 + W on the main path, so that weight decay draws it to the identity."""

    def __init__(self, config: UnifiedConfig, skip: bool):
        super().__init__()
        self.skip = Linear(2 * config.width, config.width, bias=False) if skip else None

    def merge(self, x: Tensor, earlier: Tensor | None) -> Tensor:
        if self.skip is None:
            return x
        if earlier is None:
            raise ValueError("earlier: a block with a skip needs the input of its mirror image, got None")
        return x + self.skip(torch.cat((x, earlier), dim=-1))

    @property
    def starts_at_zero(self) -> tuple[nn.Linear, ...]:
        return () if self.skip is None else (self.skip,)


class VisualTower(nn.Module):
    """What pictures have of a block for themselves, by the names that text's has in the block."""

    def __init__(self, config: UnifiedConfig, attends: bool):
        super().__init__()
        self.attention_norm = norm_of(config)
        if attends and config.modality_experts == "all":
            self.attention = Attention(config)
        self.mlp_norm = norm_of(config)
        self.mlp = feed_forward_of(config)

    @property
    def residual_outputs(self) -> tuple[nn.Linear, ...]:
        return (self.attention.out, self.mlp.down) if hasattr(self, "attention") else (self.mlp.down,)


class Block(_MayMerge):
    def __init__(self, config: UnifiedConfig, skip: bool = False, attends: bool = True):
        super().__init__(config, skip)
        self.attention_norm = norm_of(config)
        if attends:
            self.attention = Attention(config)
        else:
            self.recurrence = Recurrence(config)
        self.attends = attends
        if not config.parallel:
            self.mlp_norm = norm_of(config)
        self.mlp = feed_forward_of(config)
        self.norm_after, self.parallel = config.norm_after, config.parallel
        self.visual = VisualTower(config, attends) if config.has_experts else None
        self.has_own_attention = attends and config.has_experts and config.modality_experts == "all"

    @property
    def residual_outputs(self) -> tuple[nn.Linear, ...]:
        own = self.visual.residual_outputs if self.visual else ()
        return (self.attention if self.attends else self.recurrence).out, self.mlp.down, *own

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        cache: LayerCache | StateCache | None = None,
        earlier: Tensor | None = None,
        places: Places | None = None,
        modulation: Modulation | None = None,
    ) -> Tensor:
        """places, modulation: None where all places are text's, or no option asks; a recurrence needs places."""
        x = self.merge(x, earlier)
        if self.parallel:
            h = self.attention_norm(x)
            return x + self.attention(h, cos, sin, attend, cache) + self.mlp(h)
        if self.norm_after:
            x = x + self.attention_norm(self.attention(x, cos, sin, attend, cache))
            return x + self.mlp_norm(self.mlp(x))
        h = self._by_modality("attention_norm", x, places)
        h = modulation.enter(h, 0) if modulation else h
        if not self.attends:
            if places is None or places.chain is None:
                raise ValueError("places: a recurrence needs the chain of its texts, got None")
            h = self.recurrence(h, places.chain, cache)
        elif self.has_own_attention and self.visual and places:
            keys = cast(LayerCache | None, cache)
            h = self.attention.beside(self.visual.attention, h, cos, sin, attend, keys, places)
        else:
            h = self.attention(h, cos, sin, attend, cache)
        x = x + (modulation.leave(h, 0) if modulation else h)
        h = self._by_modality("mlp_norm", x, places)
        h = modulation.enter(h, 1) if modulation else h
        h = self._by_modality("mlp", h, places)
        return x + (modulation.leave(h, 1) if modulation else h)

    def _by_modality(self, name: str, x: Tensor, places: Places | None) -> Tensor:
        """(B, N, width) through the part of that name, at pictures' places through their own."""
        text = getattr(self, name)
        return places.split(x, text, getattr(self.visual, name)) if self.visual and places else text(x)


class GAUBlock(_MayMerge):
    def __init__(self, config: UnifiedConfig, skip: bool = False):
        super().__init__(config, skip)
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.unit = GatedAttentionUnit(config)

    @property
    def residual_outputs(self) -> tuple[nn.Linear, ...]:
        return (self.unit.out,)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        cache: LayerCache | None = None,
        earlier: Tensor | None = None,
        places: Places | None = None,
        modulation: Modulation | None = None,
    ) -> Tensor:
        """As `Block`; `places` say nothing here."""
        x = self.merge(x, earlier)
        if modulation is None:
            return x + self.unit(self.norm(x), cos, sin, attend, cache)
        normed = modulation.enter(self.norm(x), 0)
        return x + modulation.leave(self.unit(normed, cos, sin, attend, cache), 0)


def make_blocks(config: UnifiedConfig) -> nn.ModuleList:
    """The blocks in their order; under `long_skips` those of the second half merge."""
    merging = config.layers // 2 if config.long_skips else 0
    skips = [i >= config.layers - merging for i in range(config.layers)]
    if config.block == "gau":
        return nn.ModuleList(GAUBlock(config, skip) for skip in skips)
    return nn.ModuleList(Block(config, skip, config.attends(i)) for i, skip in enumerate(skips))


class TimeEmbedding(nn.Module):
    """Times in [0, 1], any shape -> (..., width): sinusoids of scale * t, then an MLP (arXiv 2006.11239)."""

    def __init__(self, dim: int, width: int, scale: float = TIME_SCALE):
        super().__init__()
        self.dim, self.scale = dim, scale
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        half = self.dim // 2
        steps = torch.arange(half, dtype=torch.float32, device=times.device) / half
        angles = self.scale * times.float()[..., None] * torch.exp(-math.log(10000.0) * steps)
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class StepEmbedding(TimeEmbedding):
    """Sizes of a sampler's steps, as times are; of size 0 it is exactly 0, and at the start of every size."""

    @property
    def starts_at_zero(self) -> tuple[nn.Module, ...]:
        return (self.mlp[2],)

    def forward(self, steps: Tensor) -> Tensor:
        return super().forward(steps) * (steps > 0)[..., None]
