"""OmniTokenizer (arXiv 2406.09399): images and videos into one grid of codes or latents, and back.

In: pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, T, H, W), H and W multiples of the patch, T = 1 + k times
the temporal patch. Out: `Encoded` on a grid (B, t, h, w) with h = H / patch, w = W / patch and
t = 1 + (T - 1) / temporal patch; and pixels again. Causal in time: a code depends on its own and earlier
frames alone, so an image encodes like the first frame of a video. A video of any length comes in chunks: with a
`TemporalState` passed from chunk to chunk the codes and pixels are those of the whole.
Errors: `ValueError` naming the sizes given and what would fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from omniloom.models.patches import patchify, unpatchify
from omniloom.models.tokenizer.base import BOTTLENECK, RGB, Encoded, VisualTokenizer, as_clip, only_one
from omniloom.models.tokenizer.blocks import Stack
from omniloom.models.tokenizer.config import TokenizerConfig
from omniloom.models.tokenizer.official.model import OfficialDecoder, OfficialEncoder, build_bottleneck
from omniloom.models.tokenizer.patch_embed import PatchEmbed
from omniloom.models.tokenizer.quantizers.base import Quantizer
from omniloom.models.tokenizer.quantizers.build import build_quantizer
from omniloom.models.tokenizer.streaming import BlockMemory, TemporalState


def run_stack(stack: Stack, tokens: Tensor, state: TemporalState | None, name: str) -> Tensor:
    """tokens (t, B, h, w, width) through `stack`, going on from what `state` holds under `name`."""
    if state is None:
        return stack(tokens)
    memories = state.stacks.setdefault(name, [BlockMemory()] * len(stack.layers))
    return stack(tokens, state.latent_frames, memories)


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

    def embed(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, 3, T, H, W) -> (B, t, h, w, width), before any block; start: latent frames before x."""
        if start:
            return self.to_patch_emb(patchify(x, self.patch_size, self.temporal_patch))
        tokens = self.to_patch_emb_first_frame(patchify(x[:, :, :1], self.patch_size, 1))
        if x.shape[2] > 1:
            later = self.to_patch_emb(patchify(x[:, :, 1:], self.patch_size, self.temporal_patch))
            tokens = torch.cat((tokens, later), dim=1)
        return tokens

    def forward(self, x: Tensor, state: TemporalState | None = None) -> Tensor:
        tokens = self.embed(x, state.latent_frames if state else 0).transpose(0, 1).contiguous()
        tokens = run_stack(self.enc_spatial_transformer, tokens, state, "spatial")
        return run_stack(self.enc_temporal_transformer, tokens, state, "temporal").transpose(0, 1)


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

    def forward(self, tokens: Tensor, state: TemporalState | None = None) -> Tensor:
        tokens = tokens.transpose(0, 1).contiguous()
        tokens = run_stack(self.dec_temporal_transformer, tokens, state, "temporal")
        tokens = run_stack(self.dec_spatial_transformer, tokens, state, "spatial").transpose(0, 1)
        if state and state.latent_frames:
            return unpatchify(self.to_pixels(tokens), self.patch_size, self.temporal_patch)
        pixels = unpatchify(self.to_pixels_first_frame(tokens[:, :1]), self.patch_size, 1)
        if tokens.shape[1] > 1:
            later = unpatchify(self.to_pixels(tokens[:, 1:]), self.patch_size, self.temporal_patch)
            pixels = torch.cat((pixels, later), dim=2)
        return pixels


class OmniTokenizer(VisualTokenizer):
    """The tokenizer for images and videos; see the module docstring for shapes and ranges."""

    def __init__(self, config: TokenizerConfig | None = None) -> None:
        config = config or TokenizerConfig()
        super().__init__(config, *self._build(config))
        self.init_video_from_image_()

    @staticmethod
    def _build(config: TokenizerConfig) -> tuple[nn.Module, nn.Module, Quantizer]:
        if config.compat == "official":
            bottleneck = build_bottleneck(cast(Any, config.quantizer))  # the config has checked its kind
            return OfficialEncoder(config), OfficialDecoder(config), bottleneck
        return Encoder(config), Decoder(config), build_quantizer(config.quantizer)

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The token grid (t, h, w) of a clip; ValueError where the clip does not fit it."""
        patch, temporal = self.config.patch_size, self.config.temporal_patch
        if height < patch or width < patch or height % patch or width % patch:
            raise ValueError(f"pixels: height and width must be multiples of {patch}, got {height}x{width}")
        if frames < 1 or (frames - 1) % temporal:
            raise ValueError(f"pixels: frames must be 1 plus a multiple of {temporal}, got {frames}")
        return 1 + (frames - 1) // temporal, height // patch, width // patch

    def encode(self, x: Tensor, *, update_codebook: bool = False, state: TemporalState | None = None) -> Encoded:
        """Pixels -> tokens. `update_codebook` has an effect in training mode alone.

        With `state`, x is the next chunk of a video: 1 + k * temporal_patch frames at first, then k *
        temporal_patch, and the state moves on. ValueError for a chunk of another number of frames, size or batch.
        """
        x = as_clip(x)
        frames, temporal = x.shape[2], self.config.temporal_patch
        goes_on = state is not None and state.latent_frames > 0
        if goes_on and (frames < temporal or frames % temporal):
            raise ValueError(f"pixels: a later chunk's frames must be a multiple of {temporal}, got {frames}")
        # In a later chunk the frame that stands alone, the first, is in the past.
        t, h, w = self.grid(frames + 1 if goes_on else frames, *x.shape[3:])
        x = x.to(self.pre_vq.weight.dtype)
        if state is None:
            tokens = self.encoder(x)
        else:
            self._enter(state, "encode", (len(x), h, w))
            tokens = self.encoder(x, state)
            state.latent_frames += t - goes_on
        return self._quantize(tokens, update_codebook)

    def _enter(self, state: TemporalState, side: str, shape: tuple[int, int, int]) -> None:
        if self.config.compat == "official":
            raise ValueError("state: the published computation is not causal and takes no chunks, got compat official")
        state.enter(side, shape)

    @torch.no_grad()
    def encode_chunks(self, chunks: Iterable[Tensor]) -> Iterator[Encoded]:
        """The chunks of one video in order (see `streaming.video_chunks`) -> their tokens, one by one, no gradient."""
        state = TemporalState()
        for chunk in chunks:
            yield self.encode(chunk, state=state)

    @torch.no_grad()
    def decode_chunks(self, chunks: Iterable[Tensor], *, quantize: bool = True) -> Iterator[Tensor]:
        """Codes (B, t, h, w) or latents (B, c, t, h, w) of one video in chunks -> pixels (B, 3, T, H, W), no gradient.

        The first chunk gives 1 + (t - 1) * temporal_patch frames, the later ones t * temporal_patch. The chunks may
        be cut anywhere, also where the encoder did not cut.
        """
        state = TemporalState()
        for chunk in chunks:
            yield self.decode(chunk, quantize=quantize, state=state)

    def decode(
        self,
        codes: Tensor | None = None,
        *,
        latents: Tensor | None = None,
        quantize: bool = True,
        is_video: bool | None = None,
        state: TemporalState | None = None,
    ) -> Tensor:
        """Codes (B, t, h, w), or latents (B, c, t, h, w) or (B, c, h, w), -> pixels (B, 3, T, H, W), not clamped.

        Floats given as the first argument are latents. Latents are moved to their nearest code first unless
        `quantize` is False (KL has none to move to). `is_video` False gives (B, 3, H, W), of one frame alone.
        With `state`, the tokens are the next of a video: the first chunk gives 1 + (t - 1) * temporal_patch frames,
        later ones t * temporal_patch.
        """
        given = only_one(codes, latents)
        if latents is None and not given.is_floating_point():
            if given.ndim != 4:
                raise ValueError(f"codes: expected (B, t, h, w), got {tuple(given.shape)}")
            vectors = self.codebook.decode_codes(given)
        else:
            frames = given.unsqueeze(2) if given.ndim == 4 else given
            if frames.ndim != 5 or frames.shape[1] != self.latent_dim:
                expected = f"latents: expected (B, {self.latent_dim}, t, h, w)"
                raise ValueError(f"{expected}, or codes: expected integers, got {given.dtype} {tuple(given.shape)}")
            vectors = frames.movedim(1, -1)
            vectors = self.codebook.snap(vectors) if quantize else vectors
        b, t, h, w, _ = vectors.shape
        if is_video is False and t != 1:
            raise ValueError(f"decode: an image has one latent frame, got {t}")
        if state is None:
            pixels = self._decode(vectors)
        else:
            self._enter(state, "decode", (b, h, w))
            pixels = self._decode(vectors, state)
            state.latent_frames += t
        return pixels.squeeze(2) if is_video is False else pixels

    def _decode(self, vectors: Tensor, *state: TemporalState) -> Tensor:
        return self.decoder(self.post_vq(vectors.to(self.post_vq.weight.dtype)), *state)

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

    def load_from(
        self, state: Mapping[str, Tensor], *, inflate_video: bool = False, new_bottleneck: bool = False
    ) -> None:
        """Start from the state_dict of an earlier stage's tokenizer: its weights and its codebook.

        inflate_video: remake the video parts from the image parts, so that a still video is treated like its image;
            for a tokenizer that was trained on images alone.
        new_bottleneck: keep this model's fresh quantizer and the projections around it; for another kind of
            quantizer, or another number of codes or channels.
        ValueError naming what is missing, unknown or of another shape; then nothing was loaded.
        """
        self._take(state, BOTTLENECK if new_bottleneck else ())
        if inflate_video:
            self.init_video_from_image_()
