"""Sketches: which texts say nearly the same, from a few values of each, made for many texts at once.

In: texts. Out: uint32 (texts, SKETCH). A text is its letters and digits alone, so that neither case, spaces, accents
nor punctuation count, and each run of `RUN` of them has a hash. The hash's first bits say in which of SKETCH places the
run lies, and of the runs of a place the least hash stays: one permutation hashing (Li, Owen and Zhang, "One permutation
hashing", 2012). The share of places in which two sketches agree is about the share of runs that two texts have in
common (Broder, "On the resemblance and containment of documents", 1997).

    EMPTY        stands in a place that no run fell into. The least values of several sketches, place by place, are the
                 sketch of their texts together
    densified    fills such places before sketches are compared, from others of the same sketch, in an order that is the
                 same for all (Shrivastava, "Optimal densification for fast and accurate minwise hashing", 2017)

Letters are bytes here: those of ASCII themselves, of all others 127 classes of code points, of which a run of nine
tells enough. So one way of hashing, eight letters in a word, serves all scripts.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

SKETCH = 64  # values of a sketch
EMPTY = np.uint32(0xFFFFFFFF)
RUN = 9  # letters of a run
LEAST_RUNS = 48  # of a text that has a sketch: of short ones too much is alike by chance
_AT_ONCE = 1 << 15  # characters of texts that are worked on together, so that all of it stays in the processor's cache
_END = 255  # in place of a letter: a text ends
_LETTERS_BELOW = 0x40000  # code points; above there are none yet
_FACTORS = np.random.default_rng(9).integers(1, 1 << 63, 16, np.uint64) * np.uint64(2) + np.uint64(1)


def text_sketches(texts: Sequence[str], run: int = RUN) -> tuple[np.ndarray, np.ndarray]:
    """uint32 (n, SKETCH), and of how many runs each was made, int64 (n,)."""
    sketches = np.full((len(texts), SKETCH), EMPTY)
    runs = np.zeros(len(texts), np.int64)
    for start, stop in _stretches(texts):
        letters, ends = _letters(texts[start:stop])
        starts = np.concatenate([[0], ends[:-1] + 1])
        runs[start:stop] = np.maximum(ends - starts - run + 1, 0)
        sketches[start:stop] = _least(letters, starts, ends, run)
    return sketches, runs


def text_sketch(text: str, run: int = RUN, least: int = LEAST_RUNS) -> bytes | None:
    """The sketch of one text as bytes; None of a text of fewer runs than `least`."""
    sketches, runs = text_sketches([text], run)
    return sketches.tobytes() if runs[0] >= max(1, least) else None


def text_runs(text: str, run: int = RUN) -> np.ndarray:
    """uint64 (n,): a hash of each run of so many letters, in order; empty where the text is shorter."""
    letters, ends = _letters([text])
    hashes = _hashes(letters, run)[: max(0, ends[0] - run + 1)]
    return hashes ^ (hashes >> np.uint64(29))


def densified(sketches: np.ndarray) -> np.ndarray:
    """Sketches without empty places; that of no run at all stays empty."""
    gaps = np.argwhere(sketches == EMPTY)
    filled = np.array(sketches)
    for column in _sources().T:
        if not len(gaps):
            break
        row, place = gaps.T
        filled[row, place] = sketches[row, column[place]]
        gaps = gaps[filled[row, place] == EMPTY]
    return filled


@functools.cache
def _sources() -> np.ndarray:
    """int (SKETCH, SKETCH): of each place the others in the order in which they are asked."""
    return np.stack([np.random.default_rng((5, place)).permutation(SKETCH) for place in range(SKETCH)])


def _stretches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(start, stop) of texts that follow one another and have about `_AT_ONCE` characters in all."""
    start = size = 0
    for row, length in enumerate(map(len, texts), 1):
        size += length
        if size >= _AT_ONCE or row == len(texts):
            yield start, row
            start, size = row, 0


def _letters(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint8: the letters of the texts, one after another, `_END` behind each, then as many as a word has bytes; and
    where each text ends."""
    joined = "\0".join([*texts, ""])
    if joined.count("\0") > len(texts):
        joined = "\0".join([*(text.replace("\0", "") for text in texts), ""])
    if joined.isascii():
        found = np.frombuffer(joined.encode().translate(_of_ascii()), np.uint8)
    else:
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
        found = _of_code_points()[np.minimum(codes, _LETTERS_BELOW)]
    kept = np.flatnonzero(found != 0)
    letters = np.full(len(kept) + 8, _END, np.uint8)
    np.take(found, kept, out=letters[:-8])
    return letters, np.flatnonzero(letters[:-8] == _END)


@functools.cache
def _of_ascii() -> bytes:
    """What stands for each byte: its small letter or digit, 0 for what is none, `_END` for NUL."""
    return bytes(_END if not code else _base(chr(code)) if chr(code).isalnum() else 0 for code in range(128)) * 2


@functools.cache
def _of_code_points() -> np.ndarray:
    """The same of all code points: letters and digits beyond ASCII by their classes."""
    table = np.zeros(_LETTERS_BELOW + 1, np.uint8)
    for code in range(1, _LETTERS_BELOW):
        if (letter := chr(code)).isalnum():
            base = _base(letter)
            table[code] = base if base < 128 else 128 + (base * 0x9E3779B1 >> 16) % 127
    table[0] = _END
    return table


def _base(letter: str) -> int:
    """The code point of a letter in small, without the accents that Unicode takes from it."""
    small = letter.casefold()[:1]
    parts = unicodedata.normalize("NFD", small)
    return ord(parts[0] if unicodedata.combining(parts[1:2] or "a") else small)


def _hashes(letters: np.ndarray, run: int) -> np.ndarray:
    """uint64: of the run, of at most 120 letters, that begins at each letter but the last ones."""
    count = max(0, len(letters) - 8 - run + 1)
    words = np.array(np.ndarray((len(letters) - 7,), "<u8", letters, 0, (1,)))  # at each letter it and the next seven
    if run < 8:
        hashes = (words[:count] & np.uint64((1 << 8 * run) - 1)) * _FACTORS[0]
    else:
        hashes = words[run - 8 :][:count] * _FACTORS[0]
        for number, at in enumerate(range(0, run - 8, 8), 1):
            hashes += words[at:][:count] * _FACTORS[number]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _FACTORS[-1]
    return hashes


def _least(letters: np.ndarray, starts: np.ndarray, ends: np.ndarray, run: int) -> np.ndarray:
    """uint32 (texts, SKETCH) of texts whose letters lie there."""
    hashes = _hashes(letters, run)
    place = np.repeat(np.arange(0, SKETCH * len(ends), SKETCH), ends - starts + 1)[: len(hashes)]
    place += (hashes >> np.uint64(58)).view(np.int64)
    values = hashes.view(np.uint32)[1::2]
    # Runs that reach beyond their text are none.
    over = np.maximum(ends[:, None] - np.arange(run), starts[:, None]).ravel()
    values[over[over < len(values)]] = EMPTY
    found = np.full(SKETCH * len(ends), EMPTY)
    np.minimum.at(found, place, values)
    return found.reshape(-1, SKETCH)
