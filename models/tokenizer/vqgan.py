"""A convolutional VQ autoencoder (VQGAN, arXiv 2012.09841; LlamaGen's, arXiv 2406.06525), as Janus has one for the
pictures that it draws. It is read from a checkpoint and used as it is; nothing here trains one.

In: pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, 1, H, W), any height and width that the patch divides. Out: `Encoded`
on the grid (1, h, w), and pixels again. Codes are the nearest by Euclidean distance; the decoder reads their vectors at
unit length where `unit_codes` says so (Janus as `transformers` has it).
Parts have the names that checkpoints give them.
Errors: `ValueError` naming what was given and what would fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.norms import GroupNorm
from omniloom.models.tokenizer.base import RGB, Encoded, VisualTokenizer, as_clip, only_one
from omniloom.models.tokenizer.config import VQGANConfig
from omniloom.models.tokenizer.quantizers.base import Quantized, Quantizer, code_stats, count_codes, nearest_code

_GROUPS = 32


class KnownCodes(Quantizer):
    """A codebook that was trained elsewhere."""

    def __init__(self, size: int, dim: int, unit: bool) -> None:
        super().__init__()
        self.size, self.unit, self.mean_square = size, unit, 1.0
        self.input_dim = self.dim = dim
        self.register_buffer("embeddings", torch.randn(size, dim))

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        latents = z.float()
        codes = nearest_code(latents, self.embeddings)
        stats = code_stats(count_codes(codes, self.embeddings.shape[0]))
        return Quantized(self.decode_codes(codes), codes, latents, latents.new_zeros(()), stats)

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        vectors = self.embeddings[codes.long()]
        return F.normalize(vectors, dim=-1) if self.unit else vectors

    def snap(self, latents: Tensor) -> Tensor:
        return self.decode_codes(nearest_code(latents.float(), self.embeddings))


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(_GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), x by a 1x1 convolution where the channels change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(inputs), _norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttentionBlock(nn.Module):
    """x + attention of all positions of norm(x), with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).mT for part in (self.q, self.k, self.v))
        return x + self.proj_out(F.scaled_dot_product_attention(q, k, v).mT.view_as(x))


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = ResidualBlock(channels, channels), ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Halve(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Double(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks at one resolution, with attention at the lowest, and the step to the next: `name` says what it is called
    in checkpoints."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attends: bool, name: str, step: type | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(outputs) for _ in range(blocks if attends else 0))
        self.step = name if step else None
        if step:
            setattr(self, name, step(outputs))

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            x = self.attn[number](x) if len(self.attn) else x
        return getattr(self, self.step)(x) if self.step else x


class VQGANEncoder(nn.Module):
    """Pixels (B, 3, H, W) -> (B, width, h, w)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        sizes = [config.channels, *(config.channels * factor for factor in config.multipliers)]
        last = len(config.multipliers) - 1
        self.conv_in = nn.Conv2d(RGB, sizes[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(sizes[i], sizes[i + 1], config.blocks, i == last, "downsample", Halve if i < last else None)
            for i in range(last + 1)
        )
        self.mid, self.norm_out = Middle(sizes[-1]), _norm(sizes[-1])
        self.conv_out = nn.Conv2d(sizes[-1], config.width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class VQGANDecoder(nn.Module):
    """(B, width, h, w) -> pixels (B, 3, H, W)."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        sizes = [config.channels * factor for factor in reversed(config.multipliers)]
        last = len(sizes) - 1
        self.conv_in = nn.Conv2d(config.width, sizes[0], 3, padding=1)
        self.mid = Middle(sizes[0])
        self.up = nn.ModuleList(
            Level(sizes[max(i - 1, 0)], sizes[i], config.blocks + 1, i == 0, "upsample", Double if i < last else None)
            for i in range(last + 1)
        )
        self.norm_out = _norm(sizes[-1])
        self.conv_out = nn.Conv2d(sizes[-1], RGB, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in self.up:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VQGAN(VisualTokenizer):
    """The tokenizer; see the module docstring for shapes and ranges."""

    def __init__(self, config: VQGANConfig) -> None:
        codes = KnownCodes(config.codebook_size, config.latent_dim, config.unit_codes)
        super().__init__(config, VQGANEncoder(config), VQGANDecoder(config), codes)

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(1, h, w); ValueError for a video and for a size that the patch does not divide."""
        patch = self.config.patch_size
        if frames != 1:
            raise ValueError(f"pixels: a VQGAN encodes single images, got {frames} frames")
        if height < patch or width < patch or height % patch or width % patch:
            raise ValueError(f"pixels: height and width must be multiples of {patch}, got {height}x{width}")
        return 1, height // patch, width // patch

    def encode(self, x: Tensor, *, update_codebook: bool = False) -> Encoded:
        """Pixels -> codes and latents. The codebook stays as it is."""
        x = as_clip(x)
        self.grid(*x.shape[2:])
        tokens = self.encoder(2 * x[:, :, 0].to(self.pre_vq.weight.dtype))
        return self._quantize(tokens.movedim(1, -1)[:, None], update_codebook)

    def decode(self, codes: Tensor | None = None, *, latents: Tensor | None = None, quantize: bool = True) -> Tensor:
        """Codes (B, 1, h, w) or latents (B, c, 1, h, w) -> pixels (B, 3, 1, H, W), not clamped; latents are moved to
        their nearest codes where `quantize` says so."""
        given = only_one(codes, latents)
        if latents is None:
            return self._decode(self.codebook.decode_codes(given))
        vectors = given.movedim(1, -1)
        return self._decode(self.codebook.snap(vectors) if quantize else vectors.float())

    def _decode(self, vectors: Tensor) -> Tensor:
        if vectors.ndim != 5 or vectors.shape[1] != 1 or vectors.shape[-1] != self.latent_dim:
            raise ValueError(f"codes: expected a grid (B, 1, h, w), got {tuple(vectors.shape[:-1])}")
        hidden = self.post_vq(vectors[:, 0].to(self.post_vq.weight.dtype))
        return (self.decoder(hidden.movedim(-1, 1)) / 2)[:, :, None]

    def load_from(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of another VQGAN's state_dict. ValueError naming what does not fit."""
        self._take(state)
