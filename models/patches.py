"""Clips cut into patches, and back. In: clips (B, C, T, H, W). Out: patches in the order time, row, column of a grid
(B, t, h, w), their numbers last. Only moves numbers: what goes in comes back as it was.
"""

from __future__ import annotations

from torch import Tensor


def patchify(x: Tensor, patch: int, temporal: int = 1) -> Tensor:
    """(B, C, t * temporal, H, W) -> (B, t, h, w, C * temporal * patch * patch), in that order of numbers."""
    b, c, frames, height, width = x.shape
    x = x.reshape(b, c, frames // temporal, temporal, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)


def unpatchify(x: Tensor, patch: int, temporal: int = 1) -> Tensor:
    """The inverse of `patchify`."""
    b, t, h, w, numbers = x.shape
    channels = numbers // (temporal * patch * patch)
    x = x.reshape(b, t, h, w, channels, temporal, patch, patch).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return x.reshape(b, channels, t * temporal, h * patch, w * patch)


def pixels_to_patches(pixels: Tensor, patch: int) -> Tensor:
    """(B, 3, T, H, W) -> (B, T, h, w, patch * patch * 3): the positions of pixel_diffusion, each of one frame, its
    numbers in the order row, column, colour. ValueError where the patch does not divide height and width."""
    height, width = pixels.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"pixels: height and width must be multiples of {patch}, got {height}x{width}")
    return patchify(pixels, patch).unflatten(-1, (-1, patch * patch)).transpose(-1, -2).flatten(-2)


def patches_to_pixels(patches: Tensor, patch: int) -> Tensor:
    """The inverse of `pixels_to_patches`."""
    return unpatchify(patches.unflatten(-1, (patch * patch, -1)).transpose(-1, -2).flatten(-2), patch)
