"""Step `blur`: pictures and videos without anything sharp.

The measure is the variance of the Laplacian (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy: a
comparative study", 2000) of the luminance in levels of 255, of the picture scaled down to 512 pixels at most, so that
it says the same of a large picture and of a small one; of a video the median over its frames, at 256 pixels.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from omniloom.stages.curate.steps.base import Filter, StepConfig

LONGEST = 512


class BlurConfig(StepConfig):
    """Pictures and videos without anything sharp go."""

    kind: Literal["blur"]
    """Pictures and videos without anything sharp go."""
    min_variance: float = Field(default=20.0, gt=0)
    """The variance of the Laplacian, at least. 100 is often taken for photographs; drawings have far more, pictures
    of fog and of clear sky have less."""


class Blur(Filter):
    Config = BlurConfig
    kinds = ("image", "video")

    def apply(self, item):
        import numpy as np

        pictures = [_scaled(item.pixels)] if item.kind == "image" else item.clip.frames
        variance = float(np.median([sharpness(picture) for picture in pictures]))
        if variance < self.config.min_variance:
            return f"variance of the Laplacian {variance:.1f}: below {self.config.min_variance:g}"
        return None


def sharpness(pixels) -> float:
    """The variance of the Laplacian of uint8 (H, W, 3), inside its edges; 0 of what has no inside."""
    import numpy as np

    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var())


def _scaled(pixels):
    import numpy as np
    from PIL import Image

    scale = LONGEST / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
