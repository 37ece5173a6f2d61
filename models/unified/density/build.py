"""From a head's config to the head."""

from __future__ import annotations

from typing import Any

from omniloom.models.unified.density.base import DensityHead
from omniloom.models.unified.density.config import DensityConfig, HeadShape
from omniloom.models.unified.density.coupling import CouplingHead
from omniloom.models.unified.density.denoising import DiffusionHead
from omniloom.models.unified.density.fourier import FourierHead
from omniloom.models.unified.density.mixture import MixtureHead

_HEADS: dict[str, Any] = {
    "mixture": MixtureHead,
    "flow": CouplingHead,
    "fourier": FourierHead,
    "diffusion": DiffusionHead,
}


def make_head(config: DensityConfig, shape: HeadShape, eps: float) -> DensityHead:
    """The head of that config; `eps` of its norm."""
    return _HEADS[config.head](config, shape, eps)
