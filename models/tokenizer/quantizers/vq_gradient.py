"""Vector quantisation whose codebook on the unit sphere is learned by gradients (arXiv 1711.00937, eq. 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.tokenizer.quantizers.config import VQGradientConfig
from omniloom.models.tokenizer.quantizers.vq import SphericalCodebook


class GradientVectorQuantizer(SphericalCodebook):
    """Codes normalize(anchors + offsets): the loss |sg(z) - q|^2, a mean over tokens and channels, trains
    `offsets`; k-means and restarts write `anchors`.

    Two parts, because an optimizer may own the parameter: under ZeRO the real weights lie in its fp32 copies,
    and a restart written into the parameter would be undone by the next step. A buffer is nobody's.
    The offsets are held on one axis, as biases are, so that weight decay, which is for matrices, passes them
    by: it would pull every code back to where it started.
    """

    def __init__(self, config: VQGradientConfig) -> None:
        super().__init__(config)
        self.offsets = nn.Parameter(torch.zeros(self.size * self.dim))
        self.register_buffer("anchors", F.normalize(torch.randn(self.size, self.dim), dim=-1))

    def codebook(self) -> Tensor:
        return F.normalize(self.anchors + self._offsets(), dim=-1)

    def _offsets(self) -> Tensor:
        return self.offsets.view(self.size, self.dim)

    def _place(self, where: Tensor, codes: Tensor) -> None:
        self.anchors[where] = codes - self._offsets()[where]

    def _codebook_loss(self, latents: Tensor, q: Tensor) -> Tensor:
        # Where a latent is NaN, so is the gradient: such tokens teach nothing.
        finite = latents.isfinite().all(-1, keepdim=True)
        return torch.where(finite, q - latents.nan_to_num(), 0.0).square().mean()
