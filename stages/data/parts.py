"""What grows under a training: the documents of one corpus, and those that a later one added to it.

A part has the order of documents of the corpus that brought them, and keeps it: what a later corpus adds is a part of
its own, what it lacks is passed over. So a change of sources neither repeats a document of a running epoch nor loses
one. Documents are the same where their ids and the lengths of their segments are: one with another caption is another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omniloom.infra import disk, npy
from omniloom.infra.once import once
from omniloom.stages.data.index import KINDS, Index, ragged
from omniloom.stages.data.order import mixed

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PIECE = 1 << 20  # documents that are looked at together


@dataclass(frozen=True)
class Part:
    """`index` orders the documents; `documents` are their numbers in the corpus that is read, by their numbers in the
    index, -1 of those that are not this part's or are gone; None where all are what they were."""

    index: Index
    documents: np.ndarray | None = None


def parts_of(corpora: Sequence[Index], keep: Path | None = None) -> list[Part]:
    """The parts of the last of these corpora, which followed each other. `keep` is a folder of this machine that keeps
    what joining the ids gave, by the corpora that it names."""
    if len(corpora) == 1:
        return [Part(corpora[0])]
    keys = functools.cache(lambda number: _keys(corpora[number]))
    return [
        Part(index, _kept(keep and keep / f"{number}.npy", keys, number, len(corpora) - 1))
        for number, index in enumerate(corpora)
    ]


def _kept(file: Path | None, keys: Callable[[int], np.ndarray], number: int, last: int) -> np.ndarray:
    def join(target: Path) -> None:
        with disk.writing(str(target)) as sink:
            np.save(sink, _documents(keys, number, last))

    return _documents(keys, number, last) if file is None else npy.load(once(file, join), mapped=True)


def _documents(keys: Callable[[int], np.ndarray], number: int, last: int) -> np.ndarray:
    own = keys(number)
    found = np.arange(len(own)) if number == last else _places(own, keys(last))
    for earlier in range(number):
        found[_places(own, keys(earlier)) >= 0] = -1
    return found


def _keys(index: Index) -> np.ndarray:
    """A number a document, uint64: of its id and of the lengths of its segments, and where several have both, of which
    time it is."""
    keys = mixed(np.array(index.column("id")) + _lengths(index))
    order = np.argsort(keys, kind="stable")
    first = np.searchsorted(keys[order], keys[order])
    times = np.empty(len(keys), np.uint64)
    times[order] = np.arange(len(keys)) - first
    return keys + times * _GOLDEN


def _lengths(index: Index) -> np.ndarray:
    """A hash of the lengths of each document's segments, in every representation, uint64."""
    found = np.zeros(len(index), np.uint64)
    everything = [(kind, *piece) for kind in KINDS for piece in _pieces(index.count(kind))]
    for kind, start, stop in everything:
        held = index.column(f"{kind}.documents")[start : stop + (kind != "text")]
        documents = held["document"][: stop - start].astype(np.int64)
        if kind == "text":
            lengths = held["tokens"].astype(np.uint64)
        else:
            names = (f"{kind}.segments", f"{kind}.pixels")
            lengths = np.zeros(len(documents), np.uint64)
            for column in filter(len, map(index.column, names)):
                lengths = mixed(lengths + _of_segments(column, held["start"].astype(np.int64)))
        found[documents] = mixed(lengths + np.uint64(KINDS.index(kind)))
    return found


def _of_segments(column: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A number for the values of each run that begins at one of the starts and ends at the next, uint64."""
    counts = np.diff(starts)
    values = column[starts[0] : starts[-1]].astype(np.int64).astype(np.uint64)
    numbers = ragged(np.zeros(len(counts), np.int64), counts).astype(np.uint64)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed(values + numbers * _GOLDEN))])
    return np.diff(sums[starts - starts[0]])


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    return ((at, min(at + _PIECE, count)) for at in range(0, count, _PIECE))


def held_before(index: Index, earlier: Sequence[Index]) -> np.ndarray:
    """Of each document of an index, bool: whether one of the earlier ones has its id, whatever its lengths."""
    ids = np.array(index.column("id"))
    order = np.argsort(ids, kind="stable")
    found = np.zeros(len(ids), bool)
    for other in earlier if len(ids) else ():
        theirs = other.column("id")
        for start, stop in _pieces(len(theirs)):
            wanted = theirs[start:stop]
            first = np.searchsorted(ids[order], wanted)
            last = np.searchsorted(ids[order], wanted, side="right")
            found[order[ragged(first, last - first)]] = True
    return found


def _places(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each key stands among the others, -1 where it does not."""
    order = np.argsort(among)
    at = np.searchsorted(among[order], keys)
    place = order[np.minimum(at, len(among) - 1)] if len(among) else np.zeros(len(keys), np.int64)
    return np.where((at < len(among)) & (among[place] == keys), place, -1) if len(among) else place - 1
