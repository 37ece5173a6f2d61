"""A representation autoencoder (arXiv 2510.11690): images as the features of a frozen vision encoder, and back.

In: pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, 1, H, W), any height and width that the patch divides. Out:
`Encoded` on the grid (1, h, w), without codes, and pixels again. A latent is the encoder's last hidden state of a
patch, normalised over its channels to mean 0 and variance 1: the encoder's final norm without its learned scale and
shift, which the paper leaves out. The decoder, a vision transformer, is all that is trained; it reads latents with
noise, which what a diffusion draws has too.
The encoder's weights are part of the state_dict, so that a saved tokenizer needs no other file; `RAE.take_encoder`
puts a loaded encoder in place.
Errors: `ValueError` naming what was given and what would fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from omniloom.models.norms import LayerNorm
from omniloom.models.tokenizer import draws
from omniloom.models.tokenizer.base import RGB, Encoded, VisualTokenizer, as_clip
from omniloom.models.tokenizer.blocks import TokenBlock, spatial_table
from omniloom.models.tokenizer.config import RAEConfig
from omniloom.models.tokenizer.quantizers.base import Quantized, Quantizer
from omniloom.models.tokenizer.vit import ViT
from omniloom.models.tokenizer.vit_config import ViTConfig


class NoisyLatents(Quantizer):
    """In place of a bottleneck: latents as they are, in training with noise n ~ N(0, s^2), s ~ |N(0, tau^2)|, one s an
    image (noise-augmented decoding, arXiv 2510.11690)."""

    def __init__(self, dim: int, tau: float) -> None:
        super().__init__()
        self.dim = self.input_dim = dim
        self.size = None
        self.mean_square = float(dim)
        self.tau = tau

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        z_q = z = z.float()
        if self.training and self.tau:
            deviation = self.tau * draws.normal(z.new_empty(len(z), *(1 for _ in z.shape[1:]))).abs()
            z_q = z + deviation * draws.normal(torch.empty_like(z))
        return Quantized(z_q, None, z, z.new_zeros(()), {})


class RAEDecoder(nn.Module):
    """Tokens (B, h, w, width) -> pixels (B, 3, 1, H, W): blocks of full attention, rotary positions, a linear head.

    The head has the name of OmniTokenizer's for single images. With `activation_checkpointing` set, a training pass
    keeps only each block's input.
    """

    def __init__(self, config: RAEConfig, patch_size: int) -> None:
        super().__init__()
        self.patch_size, self.head_dim = patch_size, config.head_dim
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(TokenBlock(config) for _ in range(config.decoder_layers))
        self.norm = LayerNorm(config.width)
        self.to_pixels_first_frame = nn.Linear(config.width, RGB * patch_size**2)

    def forward(self, tokens: Tensor) -> Tensor:
        h, w = tokens.shape[1:3]
        x, table = tokens.flatten(1, 2), spatial_table(h, w, self.head_dim, tokens.device)
        for layer in self.layers:
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, table, use_reentrant=False)
            else:
                x = layer(x, table)
        pixels = self.to_pixels_first_frame(self.norm(x)).mT.unflatten(2, (h, w))
        return F.pixel_shuffle(pixels, self.patch_size).unsqueeze(2)


class RAE(VisualTokenizer):
    """The tokenizer; see the module docstring for shapes and ranges."""

    def __init__(self, config: RAEConfig) -> None:
        if not isinstance(config.encoder, ViTConfig):
            raise ValueError(f"RAEConfig.encoder: expected the shape of the encoder, got {config.encoder!r}")
        latents = NoisyLatents(config.latent_dim, config.noise_tau)
        decoder = RAEDecoder(config, config.known_patch_size)
        super().__init__(config, ViT(config.encoder), decoder, latents)
        self.pre_vq = nn.Identity()  # type: ignore[assignment]  # the features are the latents

    def take_encoder(self, encoder: ViT) -> None:
        """Copy the weights of a loaded encoder of the config's shape."""
        self.encoder.load_state_dict(encoder.state_dict())

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(1, h, w); ValueError for a video and for a size that the patch does not divide."""
        patch = self.config.patch_size
        if frames != 1:
            raise ValueError(f"pixels: RAE encodes single images, got {frames} frames")
        if height < patch or width < patch or height % patch or width % patch:
            raise ValueError(f"pixels: height and width must be multiples of {patch}, got {height}x{width}")
        return 1, height // patch, width // patch

    def encode(self, x: Tensor, *, update_codebook: bool = False) -> Encoded:
        """Pixels -> latents, without a gradient. There is no codebook to update."""
        x = as_clip(x)
        _, h, w = self.grid(*x.shape[2:])
        with torch.no_grad():
            features = self.encoder.on_grid(x[:, :, 0], h, w, affine=False)
        return self._quantize(features[:, None], update_codebook)

    def decode(self, codes: Tensor | None = None, *, latents: Tensor | None = None, quantize: bool = True) -> Tensor:
        """Latents (B, c, 1, h, w) -> pixels (B, 3, 1, H, W), not clamped. There are no codes to decode, and none that
        `quantize` could move the latents to."""
        if codes is not None or latents is None:
            raise ValueError("decode: an RAE has no codes: give its latents")
        if latents.ndim != 5 or latents.shape[1:3] != (self.latent_dim, 1):
            raise ValueError(f"latents: expected (B, {self.latent_dim}, 1, h, w), got {tuple(latents.shape)}")
        return self._decode(latents.movedim(1, -1))

    def _decode(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.post_vq(vectors[:, 0].to(self.post_vq.weight.dtype)))

    def load_from(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of another RAE's state_dict, the encoder's too. ValueError naming what does not fit."""
        self._take(state)
