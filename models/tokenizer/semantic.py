"""Alignment of a tokenizer's latents with a frozen vision encoder's features (VA-VAE, arXiv 2501.01423, section 4.2).

In: pixels in [-0.5, 0.5], (B, 3, H, W), and what the decoder reads of them, z (B, c, h, w). Out: two float32 scalars.
The encoder sees the picture scaled so that it has a patch for each latent. One matrix is trained beside the tokenizer,
and belongs to the objective: it maps latents to the features' channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.tokenizer.vit import ViT


def marginal_cosine(projected: Tensor, features: Tensor, margin: float) -> Tensor:
    """Marginal cosine similarity: the mean over positions of max(0, 1 - margin - cos(z', f)), of (B, N, D) each."""
    return F.relu(1.0 - margin - F.cosine_similarity(projected, features, dim=-1)).mean()


def marginal_distance(z: Tensor, features: Tensor, margin: float) -> Tensor:
    """Marginal distance matrix similarity: the mean over pairs of a picture's positions of
    max(0, |cos(z_i, z_j) - cos(f_i, f_j)| - margin), of z (B, N, c) and features (B, N, D)."""
    own, wanted = (F.normalize(x, dim=-1) for x in (z, features))
    return F.relu((own @ own.mT - wanted @ wanted.mT).abs() - margin).mean()


class SemanticAlignment(nn.Module):
    """`encoder` is frozen; `weight` is that of both terms, beside the adaptive one."""

    def __init__(self, encoder: ViT, latent_dim: int, weight: float, cosine_margin: float, distance_margin: float):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.weight, self.cosine_margin, self.distance_margin = weight, cosine_margin, distance_margin
        self.project = nn.Linear(latent_dim, encoder.config.width, bias=False)

    def forward(self, pixels: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The cosine term and the distance term. Gradients reach z and the matrix."""
        h, w = z.shape[2:]
        with torch.no_grad():
            features = self.encoder.on_grid(pixels, h, w).flatten(1, 2).float()
        tokens = z.flatten(2).mT
        projected = self.project(tokens.to(self.project.weight.dtype)).float()
        with torch.autocast(z.device.type, enabled=False):
            cosine = marginal_cosine(projected, features, self.cosine_margin)
            return cosine, marginal_distance(tokens.float(), features, self.distance_margin)
