"""Step `size`: pictures and videos that are too small, too large or too long and thin."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from omniloom.stages.curate.steps.base import Filter, StepConfig


class SizeConfig(StepConfig):
    """Pictures and videos that are too small, too large or too long and thin go."""

    kind: Literal["size"]
    """Pictures and videos that are too small, too large or too long and thin go."""
    min_side: int = Field(default=0, ge=0)
    """Pixels of the shorter side, at least, as displayed."""
    min_pixels: int = Field(default=0, ge=0)
    """Width x height, at least."""
    max_pixels: int | None = Field(default=None, ge=1)
    """Width x height, at most."""
    max_aspect: float | None = Field(default=None, ge=1)
    """The longer side over the shorter one, at most."""


class Size(Filter):
    Config = SizeConfig
    kinds = ("image", "video")

    def apply(self, item):
        config, (width, height) = self.config, (item.row["width"], item.row["height"])
        short, long = sorted((width, height))
        if short < config.min_side:
            return f"{width}x{height} pixels: a side is below {config.min_side}"
        if width * height < config.min_pixels:
            return f"{width}x{height} pixels: fewer than {config.min_pixels:,}"
        if config.max_pixels and width * height > config.max_pixels:
            return f"{width}x{height} pixels: more than {config.max_pixels:,}"
        if config.max_aspect and long > config.max_aspect * short:
            return f"{width}x{height} pixels: {long / short:.1f} to 1, above {config.max_aspect:g}"
        return None
