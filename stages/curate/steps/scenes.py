"""Step `scenes`: recordings are cut into clips where one scene follows another.

A cut is where two frames that follow one another differ by more than `threshold` in the mean of hue, saturation and
value, in levels of 255: the measure and the default of PySceneDetect's detector of content. The clips are encoded again
(H.264, frames at their own times, no sound) and have the recording's split, captions and label, and its path with the
seconds as a media fragment (W3C, "Media fragments URI 1.0"): `trip.mp4#t=4.2,9.75`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from omniloom.stages.curate.steps.base import Filter, StepConfig

_LONGEST = 128  # pixels of a frame when it is compared


class ScenesConfig(StepConfig):
    """Videos are cut into clips where one scene follows another."""

    kind: Literal["scenes"]
    """Videos are cut into clips where one scene follows another."""
    threshold: float = Field(default=27.0, gt=0, le=255)
    """By how much two frames that follow one another have to differ for a cut, in levels of 255."""
    min_seconds: float = Field(default=0.6, ge=0)
    """Seconds of a clip, at least: a cut that comes sooner is none."""


class Scenes(Filter):
    Config = ScenesConfig
    kinds = ("video",)
    makes_content = True
    changes = True

    def apply(self, item):
        from omniloom.stages.curate import scenes

        cuts = scenes.cuts(item.row["media"], self.config.threshold, self.config.min_seconds, _LONGEST)
        if not cuts:
            return None
        return [scenes.clip_row(item.row, *clip) for clip in scenes.clips(item.row["media"], cuts)]
