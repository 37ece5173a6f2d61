"""Encoder, decoder and codebook of the published OmniTokenizer (arXiv 2406.09399), for `compat="official"`.

In and out: as in `omni`, whose `OmniTokenizer` holds these in place of its own; `checkpoint` fills them from a
released file. Images and videos are square, their side a multiple of the patch (and, where a layer has windows,
of patch times window), as the published encoder needs them; the decoder takes any grid that its layers take.
Errors: `ValueError` naming the sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.patches import patchify, unpatchify
from omniloom.models.tokenizer.base import RGB
from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.official.blocks import OfficialStack
from omniloom.models.tokenizer.patch_embed import PatchEmbed
from omniloom.models.tokenizer.quantizers.base import (
    Quantized,
    Quantizer,
    code_stats,
    count_codes,
    from_rank_zero,
    nearest_code,
    straight_through,
    sum_over_ranks,
)
from omniloom.models.tokenizer.quantizers.config import GaussianConfig, VQConfig
from omniloom.models.tokenizer.quantizers.kl import GaussianBottleneck

COUNT_EPSILON = 1e-7


class OfficialEncoder(nn.Module):
    """Pixels (B, 3, T, s, s) -> tokens (B, t, h, w, width)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.patch_size, self.temporal_patch = config.patch_size, config.temporal_patch
        first = RGB * config.patch_size**2
        self.to_patch_emb_first_frame = PatchEmbed(first, config.width, norm=True)
        self.to_patch_emb = PatchEmbed(first * config.temporal_patch, config.width, norm=True)
        self.enc_spatial_transformer = OfficialStack(config, config.spatial_layers)
        self.enc_temporal_transformer = OfficialStack(config, "c" * config.temporal_layers)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[3] != x.shape[4]:
            raise ValueError(f"pixels: the published encoder takes square frames, got {x.shape[3]}x{x.shape[4]}")
        tokens = self.to_patch_emb_first_frame(patchify(x[:, :, :1], self.patch_size, 1))
        if x.shape[2] > 1:
            later = self.to_patch_emb(patchify(x[:, :, 1:], self.patch_size, self.temporal_patch))
            tokens = torch.cat((tokens, later), dim=1)
        return self.enc_temporal_transformer(self.enc_spatial_transformer(tokens))


class OfficialDecoder(nn.Module):
    """Tokens (B, t, h, w, width) -> pixels (B, 3, T, H, W)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.patch_size, self.temporal_patch = config.patch_size, config.temporal_patch
        first = RGB * config.patch_size**2
        self.dec_temporal_transformer = OfficialStack(config, "c" * config.temporal_layers)
        self.dec_spatial_transformer = OfficialStack(config, config.decoder_spatial_layers)
        self.to_pixels_first_frame = nn.Linear(config.width, first)
        self.to_pixels = nn.Linear(config.width, first * config.temporal_patch)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.dec_spatial_transformer(self.dec_temporal_transformer(tokens))
        pixels = unpatchify(self.to_pixels_first_frame(tokens[:, :1]), self.patch_size, 1)
        if tokens.shape[1] > 1:
            later = unpatchify(self.to_pixels(tokens[:, 1:]), self.patch_size, self.temporal_patch)
            pixels = torch.cat((pixels, later), dim=2)
        return pixels


class OfficialCodebook(Quantizer):
    """The published vector quantiser: unit latents, codes of any length, the nearest by Euclidean distance.

    A code is the moving average of the sum of the latents it won over that of their number (arXiv 1711.00937,
    appendix A.1). The first codes are latents of the first batch; a code never set has `N` = 0, so a resumed run
    keeps its codebook. Dead codes are not restarted, as published.
    """

    size: int

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.input_dim = self.dim = config.latent_dim
        self.size, self.mean_square = config.codebook_size, 1.0
        self.decay, self.commitment = config.ema_decay, config.commitment
        self.register_buffer("embeddings", F.normalize(torch.randn(self.size, self.dim), dim=-1))
        self.register_buffer("N", torch.zeros(self.size))
        self.register_buffer("z_avg", self.embeddings.clone())
        self.register_buffer("codebook_usage", torch.zeros(self.size))

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            latents = F.normalize(z.float(), dim=-1)
            update = update and self.training
            if update:
                self._start(latents.detach().flatten(0, -2))
            codes = nearest_code(latents, self.embeddings)
            q = self.embeddings[codes]
            loss = self.commitment * F.mse_loss(latents, q)
            counts = count_codes(codes, self.size)
            if update:
                counts = self._learn(latents.detach().flatten(0, -2), codes.flatten())
            z_q = straight_through(latents, q) if self.training else q
            return Quantized(z_q, codes, latents, loss, code_stats(counts))

    @torch.no_grad()
    def _start(self, latents: Tensor) -> None:
        """Take the first codes from latents (n, dim) of rank 0's first batch."""
        latents = latents[latents.isfinite().all(-1)]
        # Rank 0 decides for all: a rank that left here alone would let the others wait for ever.
        if bool(self.N.any()) or not int(from_rank_zero(torch.tensor(len(latents), device=self.N.device))):
            return
        codes = self.embeddings.clone()
        if 0 < len(latents) < self.size:  # copies, told apart by a little noise
            latents = latents.repeat(-(-self.size // len(latents)), 1)
            latents = latents + torch.randn_like(latents) * 0.01 * self.dim**-0.5
        if len(latents):
            codes = latents[torch.randperm(len(latents), device=latents.device)[: self.size]]
        self.embeddings.copy_(from_rank_zero(codes.contiguous()))
        self.z_avg.copy_(self.embeddings)
        self.N.fill_(1.0)

    @torch.no_grad()
    def _learn(self, latents: Tensor, codes: Tensor) -> Tensor:
        """Move the averages by one batch of all ranks; returns the counts (size,)."""
        finite = latents.isfinite().all(-1)
        totals = torch.zeros(self.size, self.dim + 1, device=latents.device)
        sum_over_ranks(totals.index_add_(0, codes[finite], F.pad(latents[finite], (0, 1), value=1.0)))
        sums, counts = totals[:, :-1], totals[:, -1]
        self.N.lerp_(counts, 1 - self.decay)
        self.z_avg.lerp_(sums, 1 - self.decay)
        total = self.N.sum()
        smoothed = (self.N + COUNT_EPSILON) / (total + self.size * COUNT_EPSILON) * total
        self.embeddings.copy_(self.z_avg / smoothed.unsqueeze(1))
        self.codebook_usage.lerp_(counts / counts.sum().clamp(min=1.0), 1 - self.decay)
        return counts

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return self.embeddings[codes.long()]

    def snap(self, latents: Tensor) -> Tensor:
        return self.embeddings[nearest_code(latents.float(), self.embeddings)]


def build_bottleneck(config: VQConfig | GaussianConfig) -> Quantizer:
    """The published codebook for `vq`, the Gaussian bottleneck for `kl`."""
    return GaussianBottleneck(config) if isinstance(config, GaussianConfig) else OfficialCodebook(config)
