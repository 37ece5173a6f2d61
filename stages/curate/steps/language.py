"""Step `language`: texts, documents and captions in other languages than those wanted.

Languages are told by py3langid (Lui and Baldwin, "langid.py: an off-the-shelf language identification tool", 2012),
which `pip install omniloom[language]` brings: 140 languages, by their ISO 639-1 codes. What is too short to be told
stays.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from omniloom.infra.errors import InputError
from omniloom.stages.curate.steps.base import Filter, StepConfig


class LanguageConfig(StepConfig):
    """Texts, documents and captions in other languages than those wanted go."""

    kind: Literal["language"]
    """Texts, documents and captions in other languages than those wanted go."""
    keep: list[str] = Field(min_length=1)
    """The languages that stay, as ISO 639-1 codes: [en, de]."""
    min_probability: float = Field(default=0.8, ge=0, le=1)
    """How sure it has to be that a text is in another language for it to go."""
    min_chars: int = Field(default=20, ge=1)
    """Characters of a text or caption from which on it can be told; shorter ones stay."""


class Language(Filter):
    Config = LanguageConfig
    kinds = ("image", "video", "text", "document")
    changes = True

    @classmethod
    def check(cls, config):
        if find_spec("py3langid") is None:
            raise InputError("needs py3langid: pip install 'omniloom[language]'", field="kind")
        if unknown := sorted(set(config.keep) - set(_identifier().labels)):
            known = ", ".join(sorted(_identifier().labels))
            raise InputError(f"no language {', '.join(unknown)}; the codes are {known}", field="keep")

    def apply(self, item):
        if item.kind in ("text", "document"):
            other = self._other(item.text)
            return f"in {other}" if other else None
        captions = item.captions
        kept = [caption for caption in captions if not self._other(caption)]
        return [item.changed(captions=kept)] if len(kept) < len(captions) else None

    def _other(self, text):
        """The language that a text is surely in, where it is none of those wanted."""
        if len(text.strip()) < self.config.min_chars:
            return None
        language, probability = _identifier().classify(text)
        return language if language not in self.config.keep and probability >= self.config.min_probability else None


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
