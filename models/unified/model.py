"""The unified transformer: a Llama-shaped decoder over packed text and visual positions. In: a `Batch`, and for each
representation of pictures what the network is shown and one diffusion time a segment. Out: vocabulary logits where a
label asks for them, and of each representation predictions where they are asked for.

Blocks: pre-RMSNorm, grouped-query attention with optional QK-norm (arXiv 2302.05442) and float rotary
positions, SwiGLU (arXiv 2002.05202). Visual input: a Linear on a latent, two on a patch of pixels, an embedding of a
code; to latents and pixels an embedding of the segment's time is added, once at the input rather than modulating
every token; clean context has time 0. Visual output: RMSNorm and a Linear. Layer weights are laid out so that Llama's
load by concatenation (qkv, gate and up).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.unified.batch import Batch, VisualPart
from models.unified.config import UnifiedConfig
from models.unified.mask import dense_mask
from models.unified.positions import rotary, rotate
from models.unified.representations import REPRESENTATIONS


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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: LayerCache | None) -> Tensor:
        """x (B, N, width); cos, sin (B, 1, N, head_dim / 2); mask bool (B, 1, N, K)."""
        B, N, _ = x.shape
        qkv = self.qkv(x).view(B, N, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        cos, sin = cos.to(q.dtype), sin.to(q.dtype)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        if cache is not None:
            k, v = cache.update(k, v)
        if self.kv_heads != self.heads:
            # Written out, as the CPU's fused kernel does not take grouped heads together with a mask.
            k, v = (a.repeat_interleave(self.heads // self.kv_heads, dim=1) for a in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(B, N, -1))


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
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin, mask, cache)
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


def _visual_input(name: str, config: UnifiedConfig) -> nn.Module:
    if name == "latents":
        return nn.Linear(config.latent_dim, config.width)
    if name == "pixels":
        bottleneck = config.pixel_bottleneck
        return nn.Sequential(nn.Linear(config.pixel_dim, bottleneck, bias=False), nn.Linear(bottleneck, config.width))
    return nn.Embedding(config.codebook_size + 1, config.width)  # the last one is the mask


class UnifiedModel(nn.Module):
    """The module; `num_parameters(config)` gives its size without building it.

    `checkpoint_activations` may be set to recompute blocks in the backward pass; results do not change.
    """

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False
        rows = [REPRESENTATIONS[name] for name in config.representations]
        self.embed = nn.Embedding(config.vocab_size, config.width)
        for row in rows:
            setattr(self, f"{row.prefix}_in", _visual_input(row.name, config))
        if not all(row.discrete for row in rows):
            self.time = TimeEmbedding(config.time_dim, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        for row in rows:
            setattr(self, f"{row.prefix}_norm", RMSNorm(config.width, config.norm_eps))
            setattr(self, f"{row.prefix}_out",
                    nn.Linear(config.width, getattr(config, row.size), bias=not row.discrete))
        self.reset_parameters()
        if config.tied:
            self.head.weight = self.embed.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal with std 0.02, residual outputs shrunk by sqrt(2 * layers) (GPT-2's rule); the visual inputs
        keep unit-variance latents at the embeddings' scale, and the outputs of a diffusion start at 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:
            for linear in (block.attention.out, block.mlp.down):
                linear.weight.div_(math.sqrt(2 * len(self.blocks)))
        for name in self.config.representations:
            if not REPRESENTATIONS[name].discrete:
                nn.init.zeros_(getattr(self, f"{REPRESENTATIONS[name].prefix}_out").weight)

    def embed_visual(self, name: str, values: Tensor, time: Tensor | None = None) -> Tensor:
        """Input of the first block for positions of one representation, (..., width): values (..., C), or codes
        int64 (...), where `codebook_size` is the mask; `time` is `self.time` of the segments' times, (..., width),
        of all but codes."""
        entry = getattr(self, f"{REPRESENTATIONS[name].prefix}_in")
        if REPRESENTATIONS[name].discrete:
            return entry(values)
        return entry(values.to(self.time.mlp[0].weight.dtype)) + time

    def embed_inputs(
        self, ids: Tensor, parts: Mapping[str, VisualPart], values: Mapping[str, Tensor], times: Mapping[str, Tensor]
    ) -> Tensor:
        """Input of the first block, (B, N, width).

        ids int64 (B, N); parts as in `Batch`; values by representation, of the parts' shapes, as the network is to
        see them; times by representation, but of codes, float (B, S) in [0, 1], 0 for clean context.
        """
        text = self.embed(ids)
        x = text.flatten(0, 1)
        names = [name for name in parts if not REPRESENTATIONS[name].discrete]
        if names:
            by_segment = dict(zip(names, self.time(torch.stack([times[name] for name in names])).flatten(1, 2)))
        for name, part in parts.items():
            # index_select throughout: its backward pass is several times faster than indexing's on a CPU.
            time = by_segment[name].index_select(0, part.segment) if name in names else None
            x = x.index_copy(0, part.index, self.embed_visual(name, values[name], time).to(x.dtype))
        return x.view_as(text)

    def backbone(
        self, x: Tensor, positions: Tensor, mask: Tensor, caches: list[LayerCache] | None = None
    ) -> Tensor:
        """Hidden states (B, N, width) before the final norms. positions float32 (B, N, axes), mask bool
        (B, 1, N, K); caches, one a layer, hold what earlier calls computed."""
        c = self.config
        cos, sin = (a[:, None] for a in rotary(positions, c.head_dim, c.rope_base, c.rope_scaling))
        for index, block in enumerate(self.blocks):
            cache = caches[index] if caches is not None else None
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, cos, sin, mask, cache, use_reentrant=False)
            else:
                x = block(x, cos, sin, mask, cache)
        return x

    def text_head(self, hidden: Tensor) -> Tensor:
        """(..., width) -> vocabulary logits (..., V)."""
        return self.head(self.norm(hidden))

    def visual_head(self, name: str, hidden: Tensor) -> Tensor:
        """(..., width) -> of latents and pixels a prediction (..., C): x, noise or v, as the diffusion's config says;
        of codes logits (..., codebook_size)."""
        prefix = REPRESENTATIONS[name].prefix
        return getattr(self, f"{prefix}_out")(getattr(self, f"{prefix}_norm")(hidden))

    def forward(
        self, batch: Batch, values: Mapping[str, Tensor], times: Mapping[str, Tensor], asked: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Packed forward pass.

        values, times  by representation, as in `embed_inputs`: x_t at target positions, clean values at context's
        asked          by representation: flat places (A,) whose predictions are wanted
        Returns logits (M, V) at `batch.label_index`, and by representation predictions (A, C). Every parameter takes
        part whatever the batch holds, as ZeRO-3 needs.
        """
        x = self.embed_inputs(batch.ids, batch.parts, values, times)
        hidden = self.backbone(x, batch.positions, dense_mask(batch.start, batch.end)).flatten(0, 1)
        outputs = {name: self.visual_head(name, hidden.index_select(0, asked[name])) for name in batch.parts}
        return self.text_head(hidden.index_select(0, batch.label_index)), outputs

    def text_logits(self, ids: Tensor) -> Tensor:
        """Plain causal language model: ids int64 (B, N) -> logits (B, N, V)."""
        B, N = ids.shape
        line = torch.arange(N, device=ids.device)
        positions = line.float()[None, :, None].expand(B, N, self.config.axes)
        mask = dense_mask(torch.zeros_like(line)[None], line[None] + 1)
        return self.text_head(self.backbone(self.embed(ids), positions, mask))
