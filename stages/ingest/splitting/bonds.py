"""Bonds: what ties records to one another, so that they lie in one split.

In: of the records that stay what `Rows` has, in the order of the sources, and how their looks and sketches are read.
Out: clusters. A group (a record without one is its own) is a node; a picture that several show, near twins among
pictures, clips and texts tie nodes to one another.

Nothing is done a record at a time but in arrays: some 100 bytes a record are held, and looks and sketches are read
where something is to be laid side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from omniloom.stages.data.media.identity import CLIP_FRAMES, LOOK_BYTES
from omniloom.stages.data.media.sketches import SKETCH
from omniloom.stages.data.records import KINDS
from omniloom.stages.ingest.splitting.columns import mixed, numbered, united
from omniloom.stages.ingest.splitting.compared import Compared

_DECORATION = 16  # documents that hold a picture, at most, for it to bind them
_VIDEO, _DOCUMENT = KINDS.index("video"), KINDS.index("document")

# Of a column, looks or sketch, in a shard by its number: the values of these rows, of each the one at a place, as uint8
# (n, width).
Read = Callable[[str, int, np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Rows:
    """Of records an array each. Keys are 128 bits, uint64 (n, 2), that rise as the hex digits do which they are of."""

    id: np.ndarray
    key: np.ndarray  # of its group, or its id where it has none
    kind: np.ndarray  # places in KINDS
    stratum: np.ndarray  # numbers of its source and kind
    sketched: np.ndarray  # bool: it has a sketch
    shard: np.ndarray
    row: np.ndarray
    strata: list[tuple[str, str]]  # (source, kind) by number
    pictures: np.ndarray  # uint64 (m, 2): of all pictures and clips in records, one record's after another
    owner: np.ndarray  # int (m,): the record that holds it

    def where(self, wanted: np.ndarray) -> Rows:
        """Those for which `wanted`, bool (n,), holds."""
        if wanted.all():
            return self
        own = {
            name: getattr(self, name)[wanted] for name in ("id", "key", "kind", "stratum", "sketched", "shard", "row")
        }
        held = wanted[self.owner]
        owner = (np.cumsum(wanted) - 1)[self.owner[held]]
        return Rows(**own, strata=self.strata, pictures=self.pictures[held], owner=owner)


class Held:
    """Rows of values that are read from shards when they are first asked for, and then lie in a temporary file. A row
    is of one member or of several, of which it is the least, value by value."""

    def __init__(self, file: BinaryIO, read: Callable[[int, np.ndarray, np.ndarray], np.ndarray], width: int, dtype):
        self._read, self._dtype, self._width = read, np.dtype(dtype), width
        self._file = file
        self._members = np.empty((3, 0), np.int64)

    def of(self, rows: np.ndarray, shards: np.ndarray, at: np.ndarray, places: np.ndarray) -> Held:
        """`rows` rise, and each of 0..n-1 is there: of each member its row, its shard, the row there and the place in
        that."""
        self._members = np.stack([shards, at, places]).astype(np.int64)
        count = int(rows[-1]) + 1 if len(rows) else 0
        self._starts = np.searchsorted(rows, np.arange(count + 1))
        self._there = np.zeros(count, bool)
        self.shape = (count, self._width // self._dtype.itemsize)
        self._file.truncate(count * self._width)
        self._values = (
            np.memmap(self._file, self._dtype, "r+", shape=self.shape) if count else np.empty(self.shape, self._dtype)
        )
        return self

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, asked) -> np.ndarray:
        there = self._there[asked]
        if not there.all():
            self._load(np.unique(np.arange(len(self))[asked][~there]))
        return self._values[asked]

    def _load(self, rows: np.ndarray) -> None:
        counts = self._starts[rows + 1] - self._starts[rows]
        firsts = np.cumsum(counts) - counts
        members = np.arange(counts.sum()) + np.repeat(self._starts[rows] - firsts, counts)
        shards, at, places = self._members[:, members]
        found = np.empty((len(members), self._width), np.uint8)
        by_shard = np.argsort(shards, kind="stable")
        numbers, bounds = np.unique(shards[by_shard], return_index=True)
        for shard, own in zip(numbers.tolist(), np.split(by_shard, bounds[1:]), strict=True):
            found[own] = self._read(shard, at[own], places[own])
        values = found.view(self._dtype)
        self._values[rows] = np.minimum.reduceat(values, firsts, axis=0) if len(members) > len(rows) else values
        self._there[rows] = True


class Bonds:
    """`nodes`: of each record the number of its group, in the order in which they first come. `firsts`: the record
    where each does."""

    def __init__(self, rows: Rows, read: Read, files: Sequence[BinaryIO]):
        """`files`: three temporary ones."""
        self.rows = rows
        self.nodes, self.firsts = numbered(rows.key)
        self._clip = rows.kind[rows.owner] == _VIDEO
        self._numbers, first = numbered(rows.pictures[~self._clip])
        self._shown = np.flatnonzero(~self._clip)[first]
        place = np.arange(len(rows.owner)) - np.searchsorted(rows.owner, rows.owner)  # in its record
        owners, clips = rows.owner, np.flatnonzero(self._clip)

        def looks(file: BinaryIO, chosen: np.ndarray, width: int) -> Held:
            held = Held(file, lambda *where: read("looks", *where), width, np.uint8)
            owner = owners[chosen]
            return held.of(np.arange(len(chosen)), rows.shard[owner], rows.row[owner], place[chosen])

        self._looks = looks(files[0], self._shown, LOOK_BYTES)
        self._clips, self._clip_looks = clips, looks(files[1], clips, CLIP_FRAMES * LOOK_BYTES)
        sketched = np.flatnonzero(rows.sketched)
        sketched = sketched[np.argsort(self.nodes[sketched], kind="stable")]
        self._texts, start, number = np.unique(self.nodes[sketched], return_index=True, return_inverse=True)
        names = mixed(rows.id[sketched])
        self._text_names = np.add.reduceat(names, start, axis=0) if len(start) else names
        self._sketches = Held(files[2], lambda *where: read("sketch", *where), 4 * SKETCH, np.uint32).of(
            number, rows.shard[sketched], rows.row[sketched], np.zeros(len(sketched), np.int64)
        )

    def clusters(self, compared: Compared) -> tuple[np.ndarray, int]:
        """int64 (nodes,): the cluster of each, named by one of its members; and the records that have a near twin."""
        rows = self.rows
        pictures = compared.near_pictures("pictures", rows.pictures[self._shown], self._looks)
        clips = compared.near_pictures("clips", rows.pictures[self._clips], self._clip_looks)
        texts = compared.near_texts(self._text_names, self._sketches)
        twins = np.concatenate([self.nodes[rows.owner[self._clips[clips]]], self._texts[texts]])
        count, owner = len(self.firsts), rows.owner[~self._clip]
        in_document = rows.kind[owner] == _DOCUMENT
        held = np.bincount(self._numbers[in_document], minlength=len(self._shown))
        binds = ~in_document | (held[self._numbers] <= _DECORATION)
        bonds = np.stack([self.nodes[owner[binds]], self._numbers[binds]], axis=1)
        tied = [bonds + [0, count], pictures + count, twins]
        roots = united(count + len(self._shown), np.concatenate(tied))
        seen, near = np.zeros(len(self._shown), bool), np.zeros(count, bool)
        seen[pictures.ravel()] = True
        near[bonds[seen[bonds[:, 1]], 0]] = True
        near[twins.ravel()] = True
        return roots[:count], int(near[self.nodes].sum())
