"""Bonds: what ties records to one another, so that they lie in one split.

In: of the records that stay what `Rows` has, in the order of the sources, and how their looks and sketches are read.
Out: clusters. A group (a record without one is its own) is a node; a picture that several show, near twins among
pictures, clips and texts tie nodes to one another.

Nothing is done a record at a time but in arrays, and looks and sketches are read where something is to be laid side by
side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from omniloom.stages.data.media.identity import CLIP_FRAMES, LOOK_BYTES
from omniloom.stages.data.records import KINDS
from omniloom.stages.ingest.splitting.columns import firsts, indices, numbered, united
from omniloom.stages.ingest.splitting.compared import Compared
from omniloom.stages.ingest.splitting.sketched import Read, Texts
from omniloom.stages.ingest.splitting.spilled import scratch

_DECORATION = 16  # documents that hold a picture, at most, for it to bind them
_VIDEO, _DOCUMENT = KINDS.index("video"), KINDS.index("document")


@dataclass
class Rows:
    """Of records an array each, some 45 bytes a record, and 16 more where there are groups. Keys are 128 bits, uint64
    (n, 2), that rise as the hex digits do which they are of."""

    id: np.ndarray
    key: np.ndarray  # of its group, or its id where it has none; the same array where none has one
    kind: np.ndarray  # places in KINDS
    stratum: np.ndarray  # numbers of its source and kind
    sketched: np.ndarray  # bool: it has a sketch
    shard: np.ndarray
    row: np.ndarray
    strata: list[tuple[str, str]]  # (source, kind) by number
    shards: list[str]  # names by number
    pictures: np.ndarray  # uint64 (m, 2): of all pictures and clips in records, one record's after another
    owner: np.ndarray  # int (m,): the record that holds it

    def where(self, wanted: np.ndarray) -> Rows:
        """Those for which `wanted`, bool (n,), holds."""
        if wanted.all():
            return self
        own = {name: getattr(self, name)[wanted] for name in ("id", "kind", "stratum", "sketched", "shard", "row")}
        own["key"] = own["id"] if self.key is self.id else self.key[wanted]
        held = wanted[self.owner]
        owner = (np.cumsum(wanted) - 1)[self.owner[held]]
        return Rows(**own, strata=self.strata, shards=self.shards, pictures=self.pictures[held], owner=owner)


class Held:
    """Looks of pictures, uint8 (n, width), that are read from shards when they are first asked for."""

    def __init__(self, read: Read, where: np.ndarray, width: int):
        """`where`, int64 (3, n): of each its shard, the row there and the place in that."""
        self._read, self._where, self.shape = read, where, (where.shape[1], width)
        self._there, self._values = np.zeros(len(self), bool), scratch(self.shape, np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, asked: np.ndarray) -> np.ndarray:
        there = self._there[asked]
        if not there.all():
            self._load(np.unique(asked[~there]))
        return self._values[asked]

    def _load(self, pictures: np.ndarray) -> None:
        shards, at, places = self._where[:, pictures]
        for shard in np.unique(shards).tolist():
            own = np.flatnonzero(shards == shard)
            self._values[pictures[own]] = self._read("looks", shard, at[own], places[own])
        self._there[pictures] = True


class Bonds:
    """`nodes`: of each record the first one of its group."""

    def __init__(self, rows: Rows, read: Read):
        self.rows = rows
        count = len(rows.id)
        self.nodes = np.arange(count, dtype=indices(count)) if rows.key is rows.id else firsts(rows.key)
        self._clip = rows.kind[rows.owner] == _VIDEO
        self._numbers, first = numbered(rows.pictures[~self._clip])
        self._shown = np.flatnonzero(~self._clip)[first]
        place = np.arange(len(rows.owner)) - np.searchsorted(rows.owner, rows.owner)  # in its record
        self._clips = np.flatnonzero(self._clip)

        def looks(chosen: np.ndarray, width: int) -> Held:
            owner = rows.owner[chosen]
            where = np.stack([rows.shard[owner], rows.row[owner], place[chosen]]).astype(np.int64)
            return Held(read, where, width)

        self._looks = looks(self._shown, LOOK_BYTES)
        self._clip_looks = looks(self._clips, CLIP_FRAMES * LOOK_BYTES)
        sketched: np.ndarray = np.flatnonzero(rows.sketched).astype(indices(count))
        self._texts = Texts(sketched, self.nodes, rows.id, (rows.shard, rows.row), rows.shards, read)

    def clusters(self, compared: Compared) -> tuple[np.ndarray, int]:
        """int (records,): of each the first record of its cluster; and the records that have a near twin."""
        rows, nodes = self.rows, self.nodes
        pictures = compared.near_pictures("pictures", rows.pictures[self._shown], self._looks)
        clips = compared.near_pictures("clips", rows.pictures[self._clips], self._clip_looks)
        texts = compared.near_texts(self._texts)
        twins = np.concatenate([nodes[rows.owner[self._clips[clips]]], self._texts.nodes(texts)]).astype(np.int64)
        count, owner = len(nodes), rows.owner[~self._clip]
        in_document = rows.kind[owner] == _DOCUMENT
        held = np.bincount(self._numbers[in_document], minlength=len(self._shown))
        binds = ~in_document | (held[self._numbers] <= _DECORATION)
        bonds = np.stack([nodes[owner[binds]].astype(np.int64), self._numbers[binds]], axis=1)
        tied, least = united(np.concatenate([bonds + [0, count], pictures + count, twins]))
        records = tied < count
        roots = np.arange(count, dtype=nodes.dtype)
        roots[tied[records]] = least[records]
        seen, near = np.zeros(len(self._shown), bool), np.zeros(count, bool)
        seen[pictures.ravel()] = True
        near[bonds[seen[bonds[:, 1]], 0]] = True
        near[twins.ravel()] = True
        return roots[nodes], int(near[nodes].sum())
