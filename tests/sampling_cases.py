"""How the tests of drawing draw where they say nothing else: latents, unguided, as a model of them would fill it in."""

from __future__ import annotations

from typing import Any

from omniloom.models.unified.generation.sampling import VisualSampling


def visual(**fields: Any) -> VisualSampling:
    return VisualSampling(**{"objective": "latent_diffusion", "guidance_scale": 1.0, **fields})
