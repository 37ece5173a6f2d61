"""What grows under a training: the documents of one corpus, and those that a later one added to it.

A part has the order of documents of the corpus that brought them, and keeps it: what a later corpus adds is a part of
its own, what it lacks is passed over. So a change of sources neither repeats a document of a running epoch nor loses
one. Documents are the same where their ids are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omniloom.infra import disk
from omniloom.infra.once import once
from omniloom.stages.data.index import Index


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
    return [
        Part(index, _kept(keep and keep / f"{number}.npy", corpora, number)) for number, index in enumerate(corpora)
    ]


def _kept(file: Path | None, corpora: Sequence[Index], number: int) -> np.ndarray:
    def join(target: Path) -> None:
        with disk.writing(str(target)) as sink:
            np.save(sink, _documents(corpora, number))

    return _documents(corpora, number) if file is None else np.load(once(file, join), mmap_mode="r")


def _documents(corpora: Sequence[Index], number: int) -> np.ndarray:
    own = _keys(corpora[number])
    found = np.arange(len(own)) if number == len(corpora) - 1 else _places(own, _keys(corpora[-1]))
    for earlier in corpora[:number]:
        found[_places(own, _keys(earlier)) >= 0] = -1
    return found


def _keys(index: Index) -> np.ndarray:
    """The documents' ids, those that come several times told apart by which time it is."""
    ids = np.array(index.column("id"))
    order = np.argsort(ids, kind="stable")
    first = np.searchsorted(ids[order], ids[order])
    times = np.empty(len(ids), np.uint64)
    times[order] = np.arange(len(ids)) - first
    return ids + times * np.uint64(0x9E3779B97F4A7C15)


def _places(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each key stands among the others, -1 where it does not."""
    order = np.argsort(among)
    at = np.searchsorted(among[order], keys)
    place = order[np.minimum(at, len(among) - 1)] if len(among) else np.zeros(len(keys), np.int64)
    return np.where((at < len(among)) & (among[place] == keys), place, -1) if len(among) else place - 1
