"""TiTok (arXiv 2406.07550): an image of one size into a row of K codes or latents, and back.

In: pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, 1, H, W), of the size that the config names. Out: `Encoded` on
the grid (1, 1, K), and pixels again. The encoder reads the patches and K learned latent tokens; only the latent
tokens go on. The decoder reads them beside one mask token per patch, and predicts the patches. A latent stands
for no place: the row is an order of learned slots, and each may tell of the whole image.
Training: on pixels in one stage, like OmniTokenizer (`losses.TokenizerObjective`), or in the paper's two: warm up
on the codes of a trained 2-D tokenizer (`ProxyObjective`), then train the decoder alone on pixels
(`TiTok.start_from_warm_up`).
Errors: `ValueError` naming what was given and what would fit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omniloom.models.norms import LayerNorm
from omniloom.models.tokenizer.base import BOTTLENECK, RGB, Encoded, VisualTokenizer, as_clip, only_one
from omniloom.models.tokenizer.blocks import TokenBlock, spatial_table
from omniloom.models.tokenizer.config import TiTokConfig
from omniloom.models.tokenizer.quantizers.build import build_quantizer

HEADS = ("decoder.to_pixels_first_frame.", "decoder.to_proxy_codes.")
# Positions are half as large as the latents beside them: at 0.02 the first block's output drowns them (digits at
# 32x32, 16 latents, 300 steps: 17.0 dB at 0.02 and at 1.0, 17.8 at 0.5).
POSITION_STD = 0.5


class TokenStack(nn.Module):
    """Blocks over h * w patches and then K latents, and a final LayerNorm: (B, h * w + K, width) -> same.

    Every token has a learned position. Patches are also rotated by row and column, so that neighbours are known from
    the first step on (in the same test 17.2 dB without); latents are not rotated, for they have no place.
    With `activation_checkpointing` set, a training pass keeps only each block's input.
    """

    def __init__(self, config: TiTokConfig, layers: int) -> None:
        super().__init__()
        self.grid = (config.size[0] // config.patch_size, config.size[1] // config.patch_size)
        self.num_latents, self.head_dim = config.num_latents, config.head_dim
        self.activation_checkpointing = False
        tokens = self.grid[0] * self.grid[1] + config.num_latents
        self.positions = nn.Parameter(POSITION_STD * torch.randn(tokens, config.width))
        self.layers = nn.ModuleList(TokenBlock(config) for _ in range(layers))
        self.norm = LayerNorm(config.width)

    def _table(self, device: torch.device) -> Tensor:
        """Rotary table of the sequence: (2, h * w + K, head_dim / 2)."""
        patches = spatial_table(*self.grid, self.head_dim, device)
        still = torch.zeros(2, self.num_latents, self.head_dim // 2, device=device)
        still[0] = 1.0  # cosine and sine of 0
        return torch.cat((patches, still), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        x, table = x + self.positions.to(x.dtype), self._table(x.device)
        for layer in self.layers:
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, table, use_reentrant=False)
            else:
                x = layer(x, table)
        return self.norm(x)


class TiTokEncoder(nn.Module):
    """Pixels (B, 3, 1, H, W) -> (B, K, width): what the latent tokens took from the patches."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.to_patch_emb_first_frame = nn.Linear(RGB * config.patch_size**2, config.width)
        self.transformer = TokenStack(config, config.encoder_layers)

    def forward(self, x: Tensor) -> Tensor:
        pixels = F.pixel_unshuffle(x[:, :, 0], self.patch_size)  # channels in the order (colour, row, column)
        patches = self.to_patch_emb_first_frame(pixels.flatten(2).mT)
        # A latent token is its learned position and nothing else.
        return self.transformer(F.pad(patches, (0, 0, 0, self.transformer.num_latents)))[:, patches.shape[1] :]


class TiTokDecoder(nn.Module):
    """Latents (B, K, width) -> pixels (B, 3, 1, H, W), or of a warm-up logits (B, h, w, proxy_codes).

    The pixel head has the name of OmniTokenizer's for single images.
    """

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.mask_token = nn.Parameter(torch.zeros(config.width))  # positions tell the masks apart
        self.transformer = TokenStack(config, config.decoder_layers)
        self.proxy_codes = config.proxy_codes
        if config.proxy_codes is None:
            self.to_pixels_first_frame = nn.Linear(config.width, RGB * config.patch_size**2)
        else:
            self.to_proxy_codes = nn.Linear(config.width, config.proxy_codes)

    def forward(self, latents: Tensor) -> Tensor:
        h, w = self.transformer.grid
        masks = self.mask_token.to(latents.dtype).expand(len(latents), h * w, -1)
        patches = self.transformer(torch.cat((masks, latents), dim=1))[:, : h * w].unflatten(1, (h, w))
        if self.proxy_codes is not None:
            return self.to_proxy_codes(patches)
        pixels = self.to_pixels_first_frame(patches).permute(0, 3, 1, 2)
        return F.pixel_shuffle(pixels, self.patch_size).unsqueeze(2)


class TiTok(VisualTokenizer):
    """The tokenizer; see the module docstring for shapes and ranges."""

    def __init__(self, config: TiTokConfig | None = None) -> None:
        config = config or TiTokConfig()
        super().__init__(config, TiTokEncoder(config), TiTokDecoder(config), build_quantizer(config.quantizer))

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(1, 1, K); ValueError for a video and for any size but the config's."""
        if frames != 1:
            raise ValueError(f"pixels: TiTok encodes single images, got {frames} frames")
        if (height, width) != self.config.size:
            own_height, own_width = self.config.size
            raise ValueError(f"pixels: this TiTok encodes {own_height}x{own_width}, got {height}x{width}")
        return 1, 1, self.config.num_latents

    def encode(self, x: Tensor, *, update_codebook: bool = False) -> Encoded:
        """Pixels -> tokens. `update_codebook` has an effect in training mode alone."""
        x = as_clip(x)
        self.grid(*x.shape[2:])
        return self._quantize(self.encoder(x.to(self.pre_vq.weight.dtype))[:, None, None], update_codebook)

    def decode(self, codes: Tensor | None = None, *, latents: Tensor | None = None, quantize: bool = True) -> Tensor:
        """Codes (B, 1, 1, K), or latents (B, c, 1, 1, K), -> pixels (B, 3, 1, H, W), not clamped.

        Latents are moved to their nearest code first unless `quantize` is False (KL has none to move to).
        """
        given = only_one(codes, latents)
        row = (1, 1, self.config.num_latents)
        if latents is None:
            if given.shape[1:] != row:
                raise ValueError(f"codes: expected (B, 1, 1, {row[2]}), got {tuple(given.shape)}")
            return self._decode(self.codebook.decode_codes(given))
        if given.shape[1:] != (self.latent_dim, *row):
            raise ValueError(f"latents: expected (B, {self.latent_dim}, 1, 1, {row[2]}), got {tuple(given.shape)}")
        vectors = given.movedim(1, -1)
        return self._decode(self.codebook.snap(vectors) if quantize else vectors)

    def _project(self, vectors: Tensor) -> Tensor:
        """(B, 1, 1, K, c) -> (B, K, width)."""
        return self.post_vq(vectors.to(self.post_vq.weight.dtype))[:, 0, 0]

    def _decode(self, vectors: Tensor) -> Tensor:
        if self.config.proxy_codes is not None:
            raise ValueError("TiTokConfig.proxy_codes: this model predicts a proxy's codes and has no pixels yet")
        return self.decoder(self._project(vectors))

    def proxy_logits(self, z_q: Tensor) -> Tensor:
        """Latents as `Encoded.z_q` (B, c, 1, 1, K) -> float32 logits (B, h, w, proxy_codes) of a warm-up."""
        if self.config.proxy_codes is None:
            raise ValueError("TiTokConfig.proxy_codes: expected a codebook's size, got None")
        return self.decoder(self._project(z_q.movedim(1, -1))).float()

    def load_from(self, state: Mapping[str, Tensor], *, new_bottleneck: bool = False) -> None:
        """Take the weights and the codebook of another TiTok's state_dict; with `new_bottleneck` all but the codebook
        and the projections around it. ValueError naming what does not fit."""
        self._take(state, BOTTLENECK if new_bottleneck else ())

    def start_from_warm_up(self, state: Mapping[str, Tensor]) -> None:
        """Take a warm-up's weights, to train the decoder alone on pixels (the second stage of arXiv 2406.07550, whose
        code keeps predicting codes and trains the 2-D tokenizer's decoder behind them).

        state: state_dict of a TiTok that differs in `proxy_codes` alone. The pixel head stays fresh, and the encoder's
        side is frozen. ValueError naming what does not fit.
        """
        if self.config.proxy_codes is not None:
            raise ValueError("TiTokConfig.proxy_codes: expected None of the model that trains on pixels")
        self._take(state, fresh=HEADS)
        self.freeze_encoder()


class ProxyObjective(nn.Module):
    """The warm-up's objective: cross-entropy of the codes that a trained 2-D tokenizer gives the same pixels (the
    proxy codes of arXiv 2406.07550), plus the bottleneck's own loss.

    config: with `proxy_codes` the proxy's codebook size, and a patch such that the proxy's grid is TiTok's grid of
        patches. proxy: an `OmniTokenizer` with codes. It is no part of this module: not in its state_dict, not among
        its parameters, never in training mode; it follows the pixels to their device.
    """

    def __init__(self, config: TiTokConfig, proxy: nn.Module) -> None:
        super().__init__()
        if config.proxy_codes is None or config.proxy_codes != proxy.codebook_size:
            expected = f"the proxy's codebook size {proxy.codebook_size}"
            raise ValueError(f"TiTokConfig.proxy_codes: expected {expected}, got {config.proxy_codes}")
        self.tokenizer = TiTok(config)
        patches, grid = self.tokenizer.decoder.transformer.grid, proxy.grid(1, *config.size)
        if grid != (1, *patches):
            raise ValueError(
                f"TiTokConfig.patch_size: gives {patches[0]}x{patches[1]} patches, the proxy's grid is "
                f"{grid[1]}x{grid[2]}"
            )
        self._proxy = (copy.deepcopy(proxy).eval().requires_grad_(False),)  # in a tuple, nn.Module does not own it

    def reconstruct(self, pixels: Tensor) -> tuple[Tensor, Encoded]:
        """Pixels (B, 3, H, W) -> (pixels that the proxy's decoder makes of the likeliest codes, the TiTok's tokens)."""
        encoded = self.tokenizer.encode(pixels)
        codes = self.tokenizer.proxy_logits(encoded.z_q).argmax(-1)
        return self._proxy[0].to(pixels.device).decode(codes[:, None])[:, :, 0], encoded

    def forward(self, pixels: Tensor, update_codebook: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels (B, 3, H, W) -> (float32 loss, logs); `proxy_accuracy` is the share of codes that are right."""
        proxy = self._proxy[0].to(pixels.device)
        with torch.no_grad():
            targets = proxy.encode(pixels).codes[:, 0]
        encoded = self.tokenizer.encode(pixels, update_codebook=update_codebook)
        logits = self.tokenizer.proxy_logits(encoded.z_q)
        entropy = F.cross_entropy(logits.flatten(0, 2).float(), targets.flatten())
        loss = entropy + encoded.loss
        logs = {
            "proxy_cross_entropy": entropy,
            "bottleneck_loss": encoded.loss,
            "loss": loss,
            **encoded.stats,
            "proxy_accuracy": (logits.argmax(-1) == targets).float().mean(),
        }
        return loss, {name: value.detach().float() for name, value in logs.items()}
