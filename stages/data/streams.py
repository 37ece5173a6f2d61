"""Streams: the documents of one kind, or of one kind and source, without end or for so many epochs, in an order that
only the seed decides.

A position in a stream stands for a unit: a piece of at most `length` tokens of a text, a whole document of another
kind. Epoch e has each unit once, in a permutation of (seed, e); where a unit stands, and what stands at a position, is
computed (`order.Permutation`), whatever the number of documents. What cannot be placed is passed over, so that units
are numbered alike whatever is trained.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from omniloom.stages.data.arrange import Arranged, Arranger
from omniloom.stages.data.index import KINDS, id_hash
from omniloom.stages.data.order import Permutation, hash_seed
from omniloom.stages.data.packing import Kind
from omniloom.stages.data.parts import Part

_SAMPLE = 1 << 12  # documents that a stream's size is estimated from


class Stream:
    """`kind` of the documents of a part, the `number`th of a training, of one `source` or of all (None); texts in
    pieces of `length` tokens. After `epochs` it gives nothing more."""

    def __init__(
        self,
        part: Part,
        kind: Kind,
        length: int,
        seed: int,
        number: int = 0,
        source: str | None = None,
        epochs: float = math.inf,
    ):
        self.part, self.kind, self.length, self.source = part, kind, length, source
        self.index = index = part.index
        self.seed = hash_seed(seed, 3, number, KINDS.index(kind), *([] if source is None else [id_hash(source)]))
        self._members = range(index.count(kind)) if source is None else index.of_source(kind, source)
        self._firsts = np.zeros(1, np.int64)
        if kind == "text" and self._members:
            # Of the k-th pieces, the first text that has one: texts are sorted by their tokens, also those of a source.
            found = index.column("text.documents")["tokens"] if source is None else _Tokens(self)
            starts = range(0, int(found[len(found) - 1]), length)
            self._firsts = np.array([bisect_right(found, start) for start in starts])
        self._numbers = len(self._members) - self._firsts
        self._ends = np.cumsum(self._numbers)
        self._epochs: dict[int, Permutation] = {}
        self.limit = math.inf if epochs == math.inf else max(1, round(epochs * self.count))

    @property
    def documents_in(self) -> int:
        """Documents, those that cannot be placed among them."""
        return len(self._members)

    def places(self, members: np.ndarray) -> np.ndarray:
        """The places in their kind of the stream's documents by their numbers in it."""
        return members if self.source is None else self.index.ordered(self.kind, members + self._members.start)

    @property
    def count(self) -> int:
        """Units of an epoch, those that cannot be placed among them."""
        return int(self._ends[-1])

    def unit(self, positions: np.ndarray) -> np.ndarray:
        """The unit at each position, from 0 on."""
        epochs, places = np.divmod(positions, self.count)
        found = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs).tolist():
            found[epochs == epoch] = self._epoch(epoch).at(places[epochs == epoch])
        return found

    def positions(self, units: np.ndarray, epoch: int) -> np.ndarray:
        """Where these units stand in an epoch."""
        return epoch * self.count + self._epoch(epoch).places(units)

    def _epoch(self, epoch: int) -> Permutation:
        if epoch not in self._epochs:
            while len(self._epochs) > 2:
                self._epochs.pop(next(iter(self._epochs)), None)
            self._epochs[epoch] = Permutation(self.count, hash_seed(self.seed, epoch))
        return self._epochs[epoch]

    def pieces(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of units of texts: the documents' places in their kind, and from which token to which each goes."""
        piece = np.searchsorted(self._ends, units, side="right")
        place = units - (self._ends - self._numbers)[piece] + self._firsts[piece]
        start, place = piece * self.length, self.places(place)
        tokens = self.index.tokens(place)
        return place, start, np.minimum(start + self.length, tokens)

    def units_of(self, place: int) -> np.ndarray:
        """The units of one document, by its place in its kind; none of one of another source."""
        member = place
        if self.source is not None:
            member = bisect_left(_Places(self), place)
            if member == len(self._members) or int(self.places(np.array([member]))[0]) != place:
                return np.empty(0, np.int64)
        if self.kind != "text":
            return np.array([member])
        pieces = np.flatnonzero(self._firsts <= member)
        return (self._ends - self._numbers)[pieces] + member - self._firsts[pieces]

    def documents(self, places: np.ndarray) -> np.ndarray:
        """The numbers of documents in the corpus that is read, by their places in their kind; -1 of those that are
        gone."""
        found = self.index.documents(self.kind, places)
        return found if self.part.documents is None else np.asarray(self.part.documents)[found]

    def document_at(self, position: int) -> int:
        """The number of the document at a position in the corpus that is read; -1 where it is gone."""
        units = self.unit(np.array([position]))
        return int(self.documents(self.pieces(units)[0] if self.kind == "text" else self.places(units))[0])

    def arranged(self, positions: np.ndarray, arranger: Arranger) -> Arranged:
        """What stands at these positions, as it is arranged there, less what cannot be placed."""
        units = self.unit(positions)
        if self.kind == "text":
            places, start, stop = self.pieces(units)
        else:
            places = self.places(units)
        documents = self.documents(places)
        there = np.flatnonzero(documents >= 0)
        places, documents, positions = places[there], documents[there], positions[there]
        if self.kind == "text":
            return arranger.texts(documents, start[there], stop[there], positions)
        epochs = positions // self.count
        fits, found = arranger.pictures(self.index, self.kind, places, epochs, positions, self.seed, self.source)
        return replace(found, index=documents[fits])

    def tokens(self, arranger: Arranger) -> float:
        """Tokens of an epoch when nothing is left out, estimated from documents all over the kind where there are many;
        0 where none can be placed."""
        if self.kind == "text" and self.part.documents is None and self.source is None:
            return float(self.index.column("text.tokens").sum())
        count = len(self._members)
        step = max(1, count // _SAMPLE)
        for members in chain([np.arange(0, count, step)], _pieces(count)):
            places = self.places(members)
            if self.kind == "text":
                fits = np.ones(len(places), bool)
                tokens = self.index.tokens(places).astype(float)
            else:
                fits, tokens = arranger.fits(self.kind, arranger.longest(self.index, self.kind, places))
            fits = fits & (self.documents(places) >= 0)
            if fits.any():
                return float(tokens[fits].mean() * fits.mean() * count)
        return 0.0


class _Places:
    """The places in their kind of a stream's documents, rising, as a sequence of which few are asked for."""

    def __init__(self, stream: Stream):
        self._stream = stream

    def __len__(self) -> int:
        return len(self._stream._members)

    def __getitem__(self, member: int) -> int:
        return int(self._stream.places(np.array([member]))[0])


class _Tokens(_Places):
    """Their tokens, which rise too."""

    def __getitem__(self, member: int) -> int:
        return int(self._stream.index.tokens(np.array([super().__getitem__(member)]))[0])


def _pieces(count: int) -> Iterator[np.ndarray]:
    for at in range(0, count, 1 << 16):
        yield np.arange(at, min(at + (1 << 16), count))
