"""Sketches of many texts at once are those of each text alone, made plainly."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniloom.stages.data.media import sketches
from omniloom.stages.data.media.sketches import EMPTY, SKETCH, densified, text_runs, text_sketch, text_sketches

WORDS = st.sampled_from(
    ["the", "Quick", "brown-fox", "Über", "naïve", "写真", "собака", "हिन्दी", "42", "_x_", "\t\n", "İ", "ß"]
)
TEXTS = st.lists(st.one_of(WORDS, st.text(max_size=12)), max_size=60).map(" ".join)


def plain_letters(text: str) -> list[int]:
    """The letters of a text as bytes, one by one."""
    found = []
    for letter in text:
        if not letter.isalnum() or ord(letter) >= 0x40000:
            continue
        small = letter.casefold()[0]
        base, *rest = unicodedata.normalize("NFD", small)
        code = ord(base if rest and unicodedata.combining(rest[0]) else small)
        found.append(code if code < 128 else 128 + (code * 0x9E3779B1 >> 16) % 127)
    return found


def plain_hash(run: list[int]) -> int:
    """Of the letters of a run: its last eight, then every eight from the first on, each a number times a factor."""
    mask = (1 << 64) - 1
    factors = [int(factor) for factor in sketches._FACTORS]
    starts = [max(0, len(run) - 8), *range(0, len(run) - 8, 8)]
    words = [int.from_bytes(bytes(run[start : start + 8]), "little") for start in starts]
    value = sum(word * factor for word, factor in zip(words, factors, strict=False)) & mask
    return (value ^ value >> 32) * factors[-1] & mask


def plain_sketch(text: str, run: int) -> np.ndarray:
    letters = plain_letters(text)
    found = np.full(SKETCH, EMPTY)
    for start in range(len(letters) - run + 1):
        value = plain_hash(letters[start : start + run])
        found[value >> 58] = min(found[value >> 58], value >> 32)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, max_size=8), st.sampled_from([4, 9, 12]))
def test_a_batch_is_what_each_text_is_alone(texts, run):
    made, runs = text_sketches(texts, run)
    assert runs.tolist() == [max(0, len(plain_letters(text)) - run + 1) for text in texts]
    for text, sketch in zip(texts, made, strict=True):
        assert np.array_equal(sketch, plain_sketch(text, run))
        alone = text_sketch(text, run, 1)
        assert alone == (sketch.tobytes() if len(plain_letters(text)) >= run else None)


def test_batches_of_any_size_give_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(["alpha", "beta", "gamma", "naïve", "写真"], 30)) for _ in range(200)]
    whole, runs = text_sketches(texts)
    for size in (1, 100, 3000):
        monkeypatch.setattr(sketches, "_AT_ONCE", size)
        again, counted = text_sketches(texts)
        assert np.array_equal(whole, again) and np.array_equal(runs, counted)
    assert text_sketches([])[0].shape == (0, SKETCH)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The cat, sat on THE mat of Zoë", "the cat sat on the mat of zoe"),
        ("Größe der Straßen", "GRÖSSE der Strassen".replace("SS", "ß").replace("ss", "ß")),
        ("café au lait", unicodedata.normalize("NFD", "café au lait")),
        ("Ὀδυσσεύς πολύτροπος", "ΟΔΥΣΣΕΥΣ ΠΟΛΥΤΡΟΠΟΣ"),
        ("写真 を 撮る 人々 が いる", "写真を撮る人々がいる。"),
    ],
)
def test_neither_case_nor_accents_nor_punctuation_count(one, other):
    assert np.array_equal(text_sketches([one], 4)[0], text_sketches([other], 4)[0])
    assert np.array_equal(text_runs(one, 4), text_runs(other, 4))


def test_scripts_without_spaces_are_told_apart():
    rng = np.random.default_rng(8)
    letters = [chr(code) for code in range(0x4E00, 0x5200)]
    a = "".join(rng.choice(letters, 400))
    near = a[:200] + "".join(rng.choice(letters, 8)) + a[208:]
    far = "".join(rng.choice(letters, 400))
    made = densified(text_sketches([a, near, far])[0])
    assert (made[0] == made[1]).mean() > 0.8 and (made[0] == made[2]).mean() < 0.1


def test_the_least_of_parts_is_the_sketch_of_the_whole():
    rng = np.random.default_rng(4)
    parts = ["".join(rng.choice(list("abcdefgh"), 60)) for _ in range(5)]
    whole = "".join(parts)  # its runs are those of the parts and those across their ends
    across = [whole[60 * n - 8 : 60 * n + 8] for n in range(1, 5)]
    assert np.array_equal(text_sketches([*parts, *across])[0].min(0), text_sketches([whole])[0][0])


def test_empty_places_are_filled_alike():
    rng = np.random.default_rng(6)
    text = "".join(rng.choice(list("abcdefgh"), 70))  # 62 runs for 64 places
    made = text_sketches([text, text[:66] + "zzzz", ""])[0]
    assert 10 < (made[0] == EMPTY).sum() < 45
    filled = densified(made)
    assert (filled[0] != EMPTY).all() and (filled[2] == EMPTY).all()
    kept = made != EMPTY
    assert np.array_equal(filled[kept], made[kept])
    assert set(filled[0]) == set(made[0][kept[0]])
    assert (filled[0] == filled[1]).mean() > 0.75


def test_runs_of_any_length_have_hashes_of_their_own():
    rng = np.random.default_rng(2)
    text = "".join(rng.choice(list("abcdefgh"), 3000))
    for run in (1, 3, 8, 9, 17, 40):
        found = text_runs(text, run)
        told = {text[at : at + run] for at in range(len(text) - run + 1)}
        assert len(found) == len(text) - run + 1 and len(np.unique(found)) == len(told)
    assert len(text_runs("short", 9)) == 0
