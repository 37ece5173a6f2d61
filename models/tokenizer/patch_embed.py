"""Patches of pixels into tokens, of the published tokenizer and of ours."""

from __future__ import annotations

from torch import Tensor, nn

from omniloom.models.norms import LayerNorm


class PatchEmbed(nn.Module):
    """Patches (..., patch_dim) -> tokens (..., width)."""

    def __init__(self, patch_dim: int, width: int, norm: bool) -> None:
        super().__init__()
        self.norm_in = LayerNorm(patch_dim) if norm else nn.Identity()
        self.proj = nn.Linear(patch_dim, width)
        self.norm_out = LayerNorm(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm_out(self.proj(self.norm_in(x)))
