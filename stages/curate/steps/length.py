"""Step `length`: texts and documents of too few or too many words, videos of too few or too many seconds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from omniloom.stages.curate.steps.base import Filter, StepConfig


class LengthConfig(StepConfig):
    """Texts, documents and videos that are too short or too long go."""

    kind: Literal["length"]
    """Texts, documents and videos that are too short or too long go."""
    min_chars: int = Field(default=0, ge=0)
    """Characters of a text or of a document's text, at least."""
    max_chars: int | None = Field(default=None, ge=1)
    """Characters of a text or of a document's text, at most."""
    min_seconds: float = Field(default=0.0, ge=0)
    """Seconds of a video, at least."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Seconds of a video, at most."""


class Length(Filter):
    Config = LengthConfig
    kinds = ("text", "document", "video")

    def apply(self, item):
        config = self.config
        if item.kind == "video":
            return _outside(item.row["duration"], config.min_seconds, config.max_seconds, "seconds")
        return _outside(len(item.text), config.min_chars, config.max_chars, "characters")


def _outside(value, least, most, unit):
    if value < least:
        return f"{value:,.4g} {unit}: fewer than {least:g}"
    return f"{value:,.6g} {unit}: more than {most:g}" if most is not None and value > most else None
