"""Step `captions`: captions that are too short, too long, or repeat themselves; each goes alone."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from pydantic import Field

from omniloom.stages.curate.steps.base import Filter, StepConfig

_WORD = re.compile(r"\w+")


class CaptionsConfig(StepConfig):
    """Captions that are too short, too long, or repeat themselves go; pictures without one too, where one is
    required."""

    kind: Literal["captions"]
    """Captions that are too short, too long, or repeat themselves go; pictures without one too, where one is
    required."""
    min_words: int = Field(default=0, ge=0)
    """Words of a caption, at least."""
    max_words: int | None = Field(default=None, ge=1)
    """Words of a caption, at most."""
    max_repetition: float = Field(default=1.0, gt=0, le=1)
    """The share of a caption's words that may have been in it before. Of eight words or more; shorter ones repeat
    nothing."""
    required: bool = False
    """Pictures and videos that have no caption, or none left, go."""


class Captions(Filter):
    Config = CaptionsConfig
    kinds = ("image", "video")
    changes = True

    def apply(self, item):
        captions = item.captions
        reasons = [self._reason(caption) for caption in captions]
        kept = [caption for caption, reason in zip(captions, reasons, strict=True) if not reason]
        if not kept and self.config.required:
            return next((reason for reason in reasons if reason), "no caption")
        return [item.changed(captions=kept)] if len(kept) < len(captions) else None

    def _reason(self, caption):
        config, words = self.config, _WORD.findall(caption.casefold())
        if len(words) < config.min_words:
            return f"a caption of {len(words)} words: fewer than {config.min_words}"
        if config.max_words is not None and len(words) > config.max_words:
            return f"a caption of {len(words)} words: more than {config.max_words}"
        again = sum(count - 1 for count in Counter(words).values()) / max(1, len(words))
        if len(words) >= 8 and again > config.max_repetition:
            return f"{again:.0%} of a caption's words repeat others"
        return None
