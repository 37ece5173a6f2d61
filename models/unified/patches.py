"""Raw pixels as patches, the positions of pixel_diffusion, and back. In: pixels in [-0.5, 0.5], (B, 3, T, H, W), or
patches in [-1, 1], (B, T, H / p, W / p, p * p * 3). Out: the other. A patch is of one frame; its numbers are in the
order row, column, colour. Lossless: uint8 pixels come back as they were.
"""

from __future__ import annotations

from torch import Tensor

from omniloom.models.unified.representations import RGB


def pixels_to_patches(pixels: Tensor, patch: int) -> Tensor:
    """ValueError where the patch does not divide height and width."""
    b, c, t, height, width = pixels.shape
    if height % patch or width % patch:
        raise ValueError(f"pixels: height and width must be multiples of {patch}, got {height}x{width}")
    x = pixels.float().view(b, c, t, height // patch, patch, width // patch, patch)
    return 2 * x.permute(0, 2, 3, 5, 4, 6, 1).flatten(4)


def patches_to_pixels(patches: Tensor, patch: int) -> Tensor:
    b, t, h, w, _ = patches.shape
    x = patches.view(b, t, h, w, patch, patch, RGB).permute(0, 6, 1, 2, 4, 3, 5)
    return x.reshape(b, RGB, t, h * patch, w * patch) / 2
