"""OmniTokenizer (arXiv 2406.09399): images and videos into one grid of codes or latents, and back.

In: pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, T, H, W), H and W multiples of the patch, T = 1 + k times
the temporal patch. Out: `Encoded` on a grid (B, t, h, w) with h = H / patch, w = W / patch and
t = 1 + (T - 1) / temporal patch; and pixels again. Causal in time: a code depends on its own and earlier
frames alone, so an image encodes like the first frame of a video.
Errors: `ValueError` naming the sizes given and what would fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.tokenizer.blocks import Stack
from models.tokenizer.config import TokenizerConfig
from models.tokenizer.quantizers.build import build_quantizer

RGB = 3


class Encoded(NamedTuple):
    """Tokens of a batch. c is `latent_dim`; all floats are float32.

    codes: (B, t, h, w) int64 in [0, codebook_size), or None for a continuous bottleneck.
    latents: (B, c, t, h, w), what was quantised, in the quantizer's own range: unit length for VQ, about [-1,
        1] a channel for FSQ, the posterior's mean for KL. The nearest code of `latents` is `codes`.
    loss: scalar, the bottleneck's weighted loss. stats: detached scalars of the batch.
    z_q: (B, c, t, h, w), what the decoder reads.
    prequant: (B, input_dim, t, h, w), what the encoder gave the bottleneck: before any normalisation; of KL,
        means and then log-variances.
    """

    codes: Tensor | None
    latents: Tensor
    loss: Tensor
    stats: dict[str, Tensor]
    z_q: Tensor
    prequant: Tensor


def patchify(x: Tensor, patch: int, temporal: int) -> Tensor:
    """(B, C, k * temporal, H, W) -> (B, k, h, w, C * temporal * patch * patch), in that channel order."""
    b, c, frames, height, width = x.shape
    x = x.reshape(b, c, frames // temporal, temporal, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def unpatchify(x: Tensor, patch: int, temporal: int) -> Tensor:
    """The inverse of `patchify`."""
    b, t, h, w, _ = x.shape
    x = x.reshape(b, t, h, w, RGB, temporal, patch, patch).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(b, RGB, t * temporal, h * patch, w * patch)


class PatchEmbed(nn.Module):
    """Patches (..., patch_dim) -> tokens (..., width)."""

    def __init__(self, patch_dim: int, width: int, norm: bool) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(patch_dim) if norm else nn.Identity()
        self.proj = nn.Linear(patch_dim, width)
        self.norm_out = nn.LayerNorm(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_out(self.proj(self.norm_in(x)))


class Encoder(nn.Module):
    """Patches into tokens, spatial blocks, then temporal causal blocks."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.patch_size, self.temporal_patch = config.patch_size, config.temporal_patch
        first = RGB * config.patch_size**2
        self.to_patch_emb_first_frame = PatchEmbed(first, config.width, config.patch_norm)
        self.to_patch_emb = PatchEmbed(first * config.temporal_patch, config.width, config.patch_norm)
        self.enc_spatial_transformer = Stack(config, config.spatial_layers)
        self.enc_temporal_transformer = Stack(config, "c" * config.temporal_layers)

    def embed(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, t, h, w, width), before any block."""
        tokens = self.to_patch_emb_first_frame(patchify(x[:, :, :1], self.patch_size, 1))
        if x.shape[2] > 1:
            later = self.to_patch_emb(patchify(x[:, :, 1:], self.patch_size, self.temporal_patch))
            tokens = torch.cat((tokens, later), dim=1)
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        return self.enc_temporal_transformer(self.enc_spatial_transformer(self.embed(x)))


class Decoder(nn.Module):
    """The encoder's mirror: temporal causal blocks, spatial blocks, tokens into pixels."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.patch_size, self.temporal_patch = config.patch_size, config.temporal_patch
        first = RGB * config.patch_size**2
        self.dec_temporal_transformer = Stack(config, "c" * config.temporal_layers)
        self.dec_spatial_transformer = Stack(config, config.decoder_spatial_layers)
        self.to_pixels_first_frame = nn.Linear(config.width, first)
        self.to_pixels = nn.Linear(config.width, first * config.temporal_patch)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.dec_spatial_transformer(self.dec_temporal_transformer(tokens))
        pixels = unpatchify(self.to_pixels_first_frame(tokens[:, :1]), self.patch_size, 1)
        if tokens.shape[1] > 1:
            later = unpatchify(self.to_pixels(tokens[:, 1:]), self.patch_size, self.temporal_patch)
            pixels = torch.cat((pixels, later), dim=2)
        return pixels


class OmniTokenizer(nn.Module):
    """The tokenizer for images and videos; see the module docstring for shapes and ranges."""

    def __init__(self, config: TokenizerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TokenizerConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.codebook = build_quantizer(config.quantizer)
        self.pre_vq = nn.Linear(config.width, self.codebook.input_dim)
        self.post_vq = nn.Linear(self.codebook.dim, config.width)
        self._init_weights()
        self.init_video_from_image_()

    def _init_weights(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
                if name.endswith(("to_out", "proj", "down")) and ".layers." in name:
                    module.weight.data.mul_(0.5)  # residual branches start small
        # Codes have few channels: give the decoder's stream unit variance, or the first blocks drown them.
        nn.init.normal_(self.post_vq.weight, std=self.codebook.mean_square**-0.5)

    @property
    def latent_dim(self) -> int:
        return self.codebook.dim

    @property
    def codebook_size(self) -> int | None:
        """How many codes; None for a continuous bottleneck."""
        return self.codebook.size

    @property
    def num_params(self) -> int:
        """Learned numbers, the codebook included."""
        embeddings = getattr(self.codebook, "embeddings", None)
        return sum(p.numel() for p in self.parameters()) + (0 if embeddings is None else embeddings.numel())

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The token grid (t, h, w) of a clip; ValueError where the clip does not fit it."""
        patch, temporal = self.config.patch_size, self.config.temporal_patch
        if height < patch or width < patch or height % patch or width % patch:
            raise ValueError(f"pixels: height and width must be multiples of {patch}, got {height}x{width}")
        if frames < 1 or (frames - 1) % temporal:
            raise ValueError(f"pixels: frames must be 1 plus a multiple of {temporal}, got {frames}")
        return 1 + (frames - 1) // temporal, height // patch, width // patch

    def set_activation_checkpointing(self, on: bool) -> None:
        """Keep only the inputs of blocks in training passes and compute the rest again in backward."""
        for module in self.modules():
            if isinstance(module, Stack):
                module.activation_checkpointing = on

    def encode(self, x: Tensor, *, update_codebook: bool = False) -> Encoded:
        """Pixels -> tokens. `update_codebook` has an effect in training mode alone."""
        if x.ndim == 4:
            x = x.unsqueeze(2)
        if x.ndim != 5 or x.shape[1] != RGB or not x.is_floating_point():
            expected = "float (B, 3, H, W) or (B, 3, T, H, W)"
            raise ValueError(f"pixels: expected {expected}, got {x.dtype} {tuple(x.shape)}")
        self.grid(*x.shape[2:])
        prequant = self.pre_vq(self.encoder(x.to(self.pre_vq.weight.dtype)))
        out = self.codebook(prequant, update=update_codebook)
        latents, z_q, prequant = (v.movedim(-1, 1) for v in (out.latents, out.z_q, prequant.float()))
        return Encoded(out.codes, latents, out.loss, out.stats, z_q, prequant)

    def decode(
        self, codes: Tensor | None = None, *, latents: Tensor | None = None, quantize: bool = True
    ) -> Tensor:
        """Codes (B, t, h, w), or latents (B, c, t, h, w), -> pixels (B, 3, T, H, W), not clamped.

        Latents are moved to their nearest code first unless `quantize` is False (KL has none to move to).
        """
        if (codes is None) == (latents is None):
            raise ValueError("decode: give either codes or latents")
        if codes is not None:
            if codes.ndim != 4:
                raise ValueError(f"codes: expected (B, t, h, w), got {tuple(codes.shape)}")
            return self._decode(self.codebook.decode_codes(codes))
        if latents.ndim != 5 or latents.shape[1] != self.latent_dim:
            raise ValueError(f"latents: expected (B, {self.latent_dim}, t, h, w), got {tuple(latents.shape)}")
        vectors = latents.movedim(1, -1)
        return self._decode(self.codebook.snap(vectors) if quantize else vectors)

    def _decode(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.post_vq(vectors.to(self.post_vq.weight.dtype)))

    def forward(self, x: Tensor, *, update_codebook: bool = False) -> tuple[Tensor, Encoded]:
        """Reconstruction of x's own shape and dtype, and the tokens on the way."""
        encoded = self.encode(x, update_codebook=update_codebook)
        recon = self._decode(encoded.z_q.movedim(1, -1)).to(x.dtype)
        return (recon.squeeze(2) if x.ndim == 4 else recon), encoded

    @torch.no_grad()
    def init_video_from_image_(self) -> None:
        """Let a still video encode and decode like its image, in every frame.

        The later frames' patch embedding averages its frames through the image embedding, their head repeats
        the image head, and the convolutions forget the past; causal attention over equal frames changes
        nothing.
        """
        frames, patch = self.config.temporal_patch, self.config.patch_size
        image, video = self.encoder.to_patch_emb_first_frame, self.encoder.to_patch_emb
        weight = image.proj.weight.reshape(-1, RGB, 1, patch * patch)
        video.proj.weight.copy_(weight.expand(-1, -1, frames, -1).flatten(1) / frames)
        video.proj.bias.copy_(image.proj.bias)
        if self.config.patch_norm:
            for values in ("weight", "bias"):
                pixels = getattr(image.norm_in, values).reshape(RGB, 1, patch * patch)
                getattr(video.norm_in, values).copy_(pixels.expand(-1, frames, -1).flatten())
            video.norm_out.load_state_dict(image.norm_out.state_dict())
        head, heads = self.decoder.to_pixels_first_frame, self.decoder.to_pixels
        weight = head.weight.reshape(RGB, 1, patch * patch, -1)
        heads.weight.copy_(weight.expand(-1, frames, -1, -1).flatten(0, 2))
        heads.bias.copy_(head.bias.reshape(RGB, 1, -1).expand(-1, frames, -1).flatten())
        for module in self.modules():
            if isinstance(module, Stack):
                module.forget_past_()

    def inflate_from_image(self, state: Mapping[str, Tensor]) -> None:
        """Start joint training from an image tokenizer's state_dict (same config): its weights and codebook,
        and video parts made from the image parts. ValueError naming what does not fit."""
        own = self.state_dict()
        missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        misfit = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
        for problem, names in (("missing", missing), ("unknown", unknown), ("of another shape", misfit)):
            if names:
                shown = f"{', '.join(names[:4])} ({len(names)} in all)"
                raise ValueError(f"image tokenizer state: {problem}: {shown}")
        self.load_state_dict(state)
        self.init_video_from_image_()
