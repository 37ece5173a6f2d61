"""What `simvq_quantizer` computes (arXiv 2411.02038, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from simvq_quantizer import SimVQConfig
from torch import Tensor, nn

from omniloom.models.tokenizer.quantizers.base import (
    DiscreteQuantizer,
    Quantized,
    nearest_code,
    straight_through,
)


class SimVectorQuantizer(DiscreteQuantizer):
    """The codes' vectors are C W: C (size, dim) is drawn once and stays, W (dim, dim) is trained, so that a step that
    uses few codes moves all of them, and none is left behind to die.

    loss = codebook_weight * E|sg(z) - q|^2 + commitment * E|z - sg(q)|^2, a mean over channels, q the nearest vector.
    """

    def __init__(self, config: SimVQConfig) -> None:
        super().__init__(config)
        self.config = config
        self.input_dim = self.dim = config.dim
        self.mean_square = float(self.dim)
        self.register_buffer("frozen", torch.randn(self.size, self.dim))
        self.matrix = nn.Parameter(torch.eye(self.dim))

    def vectors(self) -> Tensor:
        """(size, dim) float32."""
        return self.frozen @ self.matrix

    def forward(self, z: Tensor, update: bool = False) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            latents, vectors = z.float(), self.vectors()
            codes = nearest_code(latents, vectors)
            chosen = vectors[codes]
            loss = self.config.codebook_weight * F.mse_loss(chosen, latents.detach())
            loss = loss + self.config.commitment * F.mse_loss(latents, chosen.detach())
            stats = self._use(codes, latents.isfinite().all(-1), update)
            return Quantized(straight_through(latents, chosen), codes, latents, loss, stats)

    def decode_codes(self, codes: Tensor) -> Tensor:
        self._check_codes(codes)
        return self.vectors()[codes]

    def snap(self, latents: Tensor) -> Tensor:
        vectors = self.vectors()
        return vectors[nearest_code(latents.float(), vectors)]
