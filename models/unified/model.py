"""The unified transformer: a Llama-shaped decoder over packed text and visual positions. In: a `Batch`, and for each
representation of pictures what the network is shown and one diffusion time a segment. Out: vocabulary logits where a
label asks for them, and of each representation predictions where they are asked for.

Blocks: `models.unified.blocks`. Visual input: a Linear on a latent, two on a patch of pixels, an embedding of a
code; to latents and pixels an embedding of the segment's time is added, once at the input rather than modulating
every token; clean context has time 0. Visual output: RMSNorm and a Linear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.unified.attention import Attend, DenseAttend, attend_for
from models.unified.batch import Batch, VisualPart
from models.unified.blocks import Block, LayerCache, RMSNorm, TimeEmbedding
from models.unified.config import UnifiedConfig
from models.unified.mask import dense_mask
from models.unified.positions import rotary
from models.unified.representations import REPRESENTATIONS


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
        self, x: Tensor, positions: Tensor, attend: Attend, caches: list[LayerCache] | None = None
    ) -> Tensor:
        """Hidden states (B, N, width) before the final norms. positions float32 (B, N, axes); `attend` has the mask;
        caches, one a layer, hold what earlier calls computed."""
        c = self.config
        cos, sin = (a[:, None] for a in rotary(positions, c.head_dim, c.rope_base, c.rope_scaling))
        for index, block in enumerate(self.blocks):
            cache = caches[index] if caches is not None else None
            if self.checkpoint_activations and self.training:
                x = checkpoint(block, x, cos, sin, attend, cache, use_reentrant=False)
            else:
                x = block(x, cos, sin, attend, cache)
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
        attend = attend_for(batch.plan, batch.start, batch.end)
        hidden = self.backbone(x, batch.positions, attend).flatten(0, 1)
        outputs = {name: self.visual_head(name, hidden.index_select(0, asked[name])) for name in batch.parts}
        return self.text_head(hidden.index_select(0, batch.label_index)), outputs

    def text_logits(self, ids: Tensor) -> Tensor:
        """Plain causal language model: ids int64 (B, N) -> logits (B, N, V)."""
        B, N = ids.shape
        line = torch.arange(N, device=ids.device)
        positions = line.float()[None, :, None].expand(B, N, self.config.axes)
        attend = DenseAttend(dense_mask(torch.zeros_like(line)[None], line[None] + 1))
        return self.text_head(self.backbone(self.embed(ids), positions, attend))
