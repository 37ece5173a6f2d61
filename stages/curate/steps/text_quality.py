"""Step `text_quality`: texts that are not prose, by rules of thumb that large corpora were made with.

    gopher      Rae et al., "Scaling language models: methods, analysis & insights from training Gopher" (2021), A.1.1,
                quality: 50 to 100,000 words of 3 to 10 letters in the mean; `#` and ellipses are at most a tenth of the
                words; at most 90% of the lines begin with a bullet and 30% end with an ellipsis; 80% of the words have
                a letter; two of the words the, be, to, of, and, that, have, with are there
    repetition  the same, A.1.1, repetition (table A1): shares of lines and paragraphs that are there twice, and of
                characters in the most frequent 2- to 4-grams and in repeated 5- to 10-grams
    c4          Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer"
                (2020), 2.2, the rules for pages: three sentences that end in punctuation; no `lorem ipsum`, no `{`

The rules of Gopher but the stop words, and those of repetition, hold for any language that puts spaces between words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from omniloom.stages.curate.steps.base import Filter, StepConfig

_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
_BULLETS = ("•", "‣", "▪", "*", "-", "●", "◦")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s|$)")
_MOST_FREQUENT = {2: 0.20, 3: 0.18, 4: 0.16}  # n-grams: the share of characters in the most frequent one
_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # in all that are there more than once


class TextQualityConfig(StepConfig):
    """Texts and documents that are not prose, by rules of thumb that large corpora were made with, go."""

    kind: Literal["text_quality"]
    """Texts and documents that are not prose, by rules of thumb that large corpora were made with, go."""
    rules: list[Literal["gopher", "repetition", "c4"]] = Field(default=["gopher", "repetition"], min_length=1)
    """Which sets of rules a text has to keep: those of Gopher for quality and for repetition, those of C4."""
    min_words: int = Field(default=50, ge=0)
    """Words that the rules of Gopher ask for, at least."""
    max_words: int = Field(default=100_000, ge=1)
    """Words that the rules of Gopher allow, at most."""
    min_stop_words: int = Field(default=2, ge=0, le=8)
    """How many of eight frequent English words the rules of Gopher ask for; 0 for other languages."""


class TextQuality(Filter):
    Config = TextQualityConfig
    kinds = ("text", "document")

    def apply(self, item):
        rules = {"gopher": self._gopher, "repetition": _repetition, "c4": _c4}
        found = (f"{name}: {reason}" for name in self.config.rules for reason in rules[name](item.text))
        return next(found, None)

    def _gopher(self, text: str) -> Iterator[str]:
        config, words = self.config, text.split()
        count, lines = len(words), [line.strip() for line in text.splitlines() if line.strip()]
        if not config.min_words <= count <= config.max_words or not count:
            yield f"{count:,} words, expected {config.min_words:,} to {config.max_words:,}"
            return
        letters = sum(map(len, words)) / count
        if not 3 <= letters <= 10:
            yield f"words of {letters:.1f} letters, expected 3 to 10"
        for symbol in ("#", "…"):
            symbols = text.count(symbol) + (text.count("...") if symbol == "…" else 0)
            if symbols > 0.1 * count:
                yield f"{symbols:,} of {symbol} in {count:,} words, at most a tenth"
        if (share := sum(line.startswith(_BULLETS) for line in lines) / len(lines)) > 0.9:
            yield f"{share:.0%} of the lines are bullets, at most 90%"
        if (share := sum(line.endswith(("…", "...")) for line in lines) / len(lines)) > 0.3:
            yield f"{share:.0%} of the lines end with an ellipsis, at most 30%"
        if (share := sum(any(map(str.isalpha, word)) for word in words) / count) < 0.8:
            yield f"{share:.0%} of the words have a letter, at least 80%"
        stop_words = len(_STOP_WORDS & {word.strip(".,;:!?\"'()").lower() for word in words})
        if stop_words < config.min_stop_words:
            yield f"{stop_words} of the, be, to, of, and, that, have, with, at least {config.min_stop_words}"


def _repetition(text: str) -> Iterator[str]:
    parts = {"lines": text.splitlines(), "paragraphs": re.split(r"\n\s*\n", text)}
    for name, found in parts.items():
        counts = Counter(part.strip() for part in found if part.strip())
        total, characters = sum(counts.values()), sum(len(part) * count for part, count in counts.items())
        if (share := 1 - len(counts) / max(1, total)) > 0.3:
            yield f"{share:.0%} of the {name} are there before, at most 30%"
        again = sum(len(part) * (count - 1) for part, count in counts.items()) / max(1, characters)
        if again > 0.2:
            yield f"{again:.0%} of the characters are in {name} that are there before, at most 20%"
    words = text.split()
    characters = max(1, sum(map(len, words)))
    for n, most in _MOST_FREQUENT.items():
        counts = Counter(zip(*(words[i:] for i in range(n))))
        if counts:
            gram, count = counts.most_common(1)[0]
            if count > 1 and (share := count * sum(map(len, gram)) / characters) > most:
                yield f"{share:.0%} of the characters are in {' '.join(gram)!r}, at most {most:.0%}"
    for n, most in _REPEATED.items():
        if (share := _in_repeated(words, n) / characters) > most:
            yield f"{share:.0%} of the characters are in repeated runs of {n} words, at most {most:.0%}"


def _in_repeated(words: list[str], n: int) -> int:
    """Characters of words that lie in a run of n words that is there before; those of overlapping runs count once."""
    seen, characters, at = set(), 0, 0
    while at + n <= len(words):
        run = tuple(words[at : at + n])
        if run in seen:
            characters += sum(map(len, run))
            at += n
        else:
            seen.add(run)
            at += 1
    return characters


def _c4(text: str) -> Iterator[str]:
    if "lorem ipsum" in text.lower():
        yield "holds lorem ipsum"
    if "{" in text:
        yield "holds {"
    if (sentences := len(_SENTENCE_END.findall(text))) < 3:
        yield f"{sentences} sentences, at least 3"
