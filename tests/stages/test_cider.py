"""CIDEr-D against numbers of the published code, and against a plain second implementation on vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.stages.evaluate.cider import cider

WORDS = st.lists(st.sampled_from(["a", "red", "big", "square", "moves", "left"]), min_size=1, max_size=7).map(" ".join)


def test_numbers_of_the_published_code():
    """As pycocoevalcap 1.2 gives them (`CiderScorer(n=4, sigma=6.0)`)."""
    written = ["A red square.", "a blue circle moves left", "the square"]
    captions = [
        ["a red square", "a small red square"],
        ["a blue circle moves right"],
        ["a green square", "the big, green square"],
    ]
    assert cider(written, captions) == pytest.approx([5.15232562, 6.66666667, 0.85950784], abs=1e-8)


def plain(written: list[str], captions: list[list[str]]) -> list[float]:
    """With a vector of all runs that occur anywhere, one length at a time."""

    def runs(text: str, n: int) -> list[str]:
        words = text.split()
        return [" ".join(words[at : at + n]) for at in range(len(words) - n + 1)]

    scores = np.zeros(len(written))
    for n in range(1, 5):
        every = sorted({run for texts in [written, *captions] for text in texts for run in runs(text, n)})
        df = [sum(any(run in runs(text, n) for text in texts) for texts in captions) for run in every]
        idf = np.array([math.log(len(captions) / max(1, count)) for count in df])
        for number, (text, others) in enumerate(zip(written, captions, strict=True)):
            for other in others:
                a, b = (np.array([runs(each, n).count(run) for run in every]) * idf for each in (text, other))
                size = np.linalg.norm(a) * np.linalg.norm(b)
                likeness = np.minimum(a, b) @ b / size if size else 0.0
                away = max(0, len(text.split()) - 1) - max(0, len(other.split()) - 1)
                scores[number] += likeness * math.exp(-(away**2) / 72) / len(others) / 4 * 10
    return scores.tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=6))
def test_against_a_plain_implementation(pictures):
    written, captions = [text for text, _ in pictures], [texts for _, texts in pictures]
    assert cider(written, captions) == pytest.approx(plain(written, captions), abs=1e-9)


def test_the_right_captions_of_others_score_nothing_much():
    captions = [["a red square"], ["the blue circle moves"], ["green on white"]]
    own = [texts[0] for texts in captions]
    assert cider(own, captions).min() > 7 and cider(own[1:] + own[:1], captions).max() < 1
    assert cider(["a red square"], [["a red square"]]).tolist() == [0.0]
