"""Step `still`: videos in which nothing moves, and videos and pictures that are black.

Measured on two frames a second. What moves is the mean difference between frames that follow one another, in levels of
255, of frames of 16 x 16 places, so that neither grain nor what encoders leave counts. A frame is black where nearly
all of its pixels are darker than a tenth of the range (the measure and its defaults are those of ffmpeg's filter
blackdetect).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from omniloom.stages.curate.steps.base import Filter, StepConfig

_DARK = 0.1 * 255


class StillConfig(StepConfig):
    """Videos in which nothing moves, and videos and pictures that are black, go."""

    kind: Literal["still"]
    """Videos in which nothing moves, and videos and pictures that are black, go."""
    min_motion: float = Field(default=1.0, ge=0)
    """The mean difference between frames that follow one another at two a second, in levels of 255, at least."""
    max_black: float = Field(default=0.5, ge=0, le=1)
    """The share of a video's frames that may be black."""
    black_pixels: float = Field(default=0.98, gt=0, le=1)
    """The share of dark pixels from which on a frame or a picture is black."""


class Still(Filter):
    Config = StillConfig
    kinds = ("image", "video")

    def apply(self, item):
        import numpy as np

        if item.kind == "image":
            return "black" if _dark(item.pixels[None])[0] >= self.config.black_pixels else None
        frames = item.clip.frames
        black = float((_dark(frames) >= self.config.black_pixels).mean())
        if black > self.config.max_black:
            return f"{black:.0%} of the frames are black"
        small = _places(frames)
        steps = [np.abs(b - a).mean() for a, b in zip(small, small[1:])]
        motion = float(np.mean(steps)) if steps else 0.0
        return f"motion of {motion:.2f} levels" if motion < self.config.min_motion else None


def _places(frames):
    """float32 (n, 16, 16, 3): frames uint8 (n, h, w, 3), scaled."""
    import numpy as np
    from PIL import Image

    scaled = [Image.fromarray(frame).resize((16, 16), Image.Resampling.BOX) for frame in frames]
    return np.stack([np.asarray(frame, np.float32) for frame in scaled])


def _dark(frames):
    """float (n,): the share of dark pixels of uint8 (n, H, W, 3)."""
    import numpy as np

    luminance = np.array([0.299, 0.587, 0.114], np.float32)
    return np.array([float((frame @ luminance <= _DARK).mean()) for frame in frames])
