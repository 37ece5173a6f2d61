"""Compared: what of pictures, clips and texts was laid side by side before, so that near twins are looked for among
what is new. In: rows by their names, with looks or sketches that are read where they are asked for. Out: near twins, as
all rows at once would give them; and for the next run

    resume/compared.npz   pictures' and clips' names, the coarse shapes by which they are looked up, which had a near
                          twin, and by how many projections they were looked up; of texts the shards that the segments
                          of `texts.bin` are of, the rows where these begin, and the names of those that had a near twin
    resume/texts.bin      texts' names, and the bands of their sketches: see `spilled.Spilled`

What is held of texts is a bit of each, and a segment at a time. In an object store `texts.bin` is written from memory,
100 bytes a text.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from omniloom.infra import npy, storage
from omniloom.infra.artifacts import RESUME, Artifact
from omniloom.stages.ingest.splitting import text_twins, twins
from omniloom.stages.ingest.splitting.columns import having
from omniloom.stages.ingest.splitting.lookup import Since, Values
from omniloom.stages.ingest.splitting.sketched import Texts
from omniloom.stages.ingest.splitting.spilled import Spilled
from omniloom.stages.ingest.splitting.text_twins import BANDS
from omniloom.stages.ingest.splitting.threads import side_by_side

FILE, TEXTS = f"{RESUME}compared.npz", f"{RESUME}texts.bin"
_BLOCK = 1 << 14  # sketches that are held at once


@dataclass
class _Part:
    """Rows of one kind, in order."""

    names: np.ndarray  # uint64 (n, 2)
    looked_up: np.ndarray
    paired: np.ndarray  # bool (n,)
    projections: np.ndarray  # int (windows,)


@dataclass
class _TextPart:
    shards: dict[str, int]  # of the segments: the number of each
    looked_up: Spilled
    paired: np.ndarray  # uint64 (m, 2): names


class Compared:
    def __init__(self, earlier: Artifact | None = None):
        self._old: dict[str, _Part] = {}
        self._new: dict[str, _Part] = {}
        self._old_texts: _TextPart | None = None
        self._texts: _TextPart | None = None
        if earlier:
            held = npy.load_all(io.BytesIO(storage.read_bytes(earlier.file(FILE))))
            texts = {name: held.pop(f"texts.{name}") for name in ("shards", "starts", "paired")}
            for kind in {name.partition(".")[0] for name in held}:
                fields = ("names", "looked_up", "paired", "projections")
                self._old[kind] = _Part(*(held[f"{kind}.{field}"] for field in fields))
            looked_up = Spilled(_opened(earlier.file(TEXTS)), BANDS, texts["starts"])
            self._old_texts = _TextPart(_numbers(texts["shards"].tolist()), looked_up, texts["paired"])

    def write(self, output: str) -> None:
        """What was compared, once it has been, of texts too."""
        assert self._texts is not None
        arrays = {f"{kind}.{name}": array for kind, part in self._new.items() for name, array in vars(part).items()}
        arrays["texts.shards"] = np.array(list(self._texts.shards), str)
        arrays["texts.starts"] = np.array(self._texts.looked_up.starts, np.int64)
        arrays["texts.paired"] = self._texts.paired
        with storage.writing(storage.join(output, TEXTS)) as file:
            self._texts.looked_up.file.seek(0)
            shutil.copyfileobj(self._texts.looked_up.file, file, 1 << 20)
        with storage.writing(storage.join(output, FILE)) as file:
            np.savez(file, **arrays)

    def near_pictures(self, kind: str, names: np.ndarray, looks: Values) -> np.ndarray:
        """Pairs of rows; `names`, uint64 (n, 2): of identities, which no two rows share."""
        shapes, place = self._looked_up(kind, names, looks)
        projections, since = twins.projections(shapes), None
        if (old := self._old.get(kind)) and np.array_equal(projections, old.projections):
            gone, asked = _gone(place, len(old.names)), place < 0
            asked[~asked] = old.paired[place[~asked]]
            since = Since(asked, old.looked_up[gone])
        pairs = twins.near_pictures(looks, shapes, since, projections)
        paired = np.zeros(len(names), bool)
        paired[pairs.ravel()] = True
        self._new[kind] = _Part(names, shapes, paired, projections)
        return pairs

    def _looked_up(self, kind: str, names: np.ndarray, values: Values) -> tuple[np.ndarray, np.ndarray]:
        """What the rows are looked up by, made of those that are new; and the place of each among the old ones, -1
        where it is new."""
        if not (old := self._old.get(kind)):
            return twins.shapes(values, np.arange(len(names))), np.full(len(names), -1)
        place = _places(names, old.names)
        found, new = old.looked_up[place], np.flatnonzero(place < 0)
        found[new] = twins.shapes(values, new)
        return found, place

    def near_texts(self, texts: Texts) -> np.ndarray:
        """Pairs of rows."""
        old, looked_up = self._old_texts, Spilled(tempfile.TemporaryFile(), BANDS)
        asked, gone = np.zeros(len(texts), bool), [np.empty((BANDS, 0), np.uint32)]
        for made in side_by_side(lambda segment: _segment(texts, segment, old), range(len(texts.shards))):
            start = len(looked_up)
            looked_up.append(made.names, made.bands)
            asked[start : len(looked_up)] = made.asked
            gone.append(made.gone)
        since, shards = None, _numbers(texts.shards)
        if old:
            gone += [old.looked_up.values(number) for name, number in old.shards.items() if name not in shards]
            since = Since(asked, np.concatenate(gone, axis=1))
        pairs = text_twins.near_texts(texts, looked_up=looked_up, since=since, order=texts.order)
        self._texts = _TextPart(shards, looked_up, texts.names(np.unique(pairs)))
        return pairs


@dataclass
class _Made:
    """Of the texts of a shard, in order: their names and bands, which are asked again, and the bands of those that were
    there."""

    names: np.ndarray
    bands: np.ndarray
    asked: np.ndarray
    gone: np.ndarray


def _segment(texts: Texts, segment: int, old: _TextPart | None) -> _Made:
    rows = texts.rows(segment)
    number = old.shards.get(texts.shards[segment]) if old else None
    names = np.concatenate([texts.names(some) for some in _blocks(rows)])
    if old is None or number is None:
        return _Made(names, _bands(texts, rows), np.ones(len(rows), bool), np.empty((BANDS, 0), np.uint32))
    known, bands = old.looked_up.names(number), old.looked_up.values(number)
    asked = np.zeros(len(rows), bool)
    asked[having(np.ascontiguousarray(names[:, 0]), old.paired[:, 0])] = True
    if np.array_equal(known, names):
        return _Made(names, bands, asked, bands[:, :0])
    place = _places(names, known)
    gone, found, new = bands[:, _gone(place, len(known))], bands[:, place], np.flatnonzero(place < 0)
    found[:, new] = _bands(texts, rows[new])
    asked[new] = True
    return _Made(names, found, asked, gone)


def _bands(texts: Texts, rows: np.ndarray) -> np.ndarray:
    found = [np.empty((BANDS, 0), np.uint32), *(text_twins.bands(texts[some]) for some in _blocks(rows))]
    return np.concatenate(found, axis=1)


def _numbers(shards: list[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(shards)}


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[at : at + _BLOCK] for at in range(0, len(rows), _BLOCK))


def _opened(uri: str) -> BinaryIO:
    """A file of the local disk."""
    if path := storage.local_path(uri):
        return open(path, "rb")
    file = tempfile.TemporaryFile()
    file.write(storage.read_bytes(uri))
    file.flush()
    return file


def _gone(place: np.ndarray, count: int) -> np.ndarray:
    """bool (count,): of the old rows those that no row has its place at."""
    gone = np.ones(count, bool)
    gone[place[place >= 0]] = False
    return gone


def _places(names: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Of each name, int64; -1 where it is not there."""
    if not len(among):
        return np.full(len(names), -1)
    order = np.argsort(among[:, 0], kind="stable")
    found = np.searchsorted(among[order, 0], names[:, 0])
    found[found == len(among)] = 0
    found = order[found]
    return np.where((among[found] == names).all(1), found, -1)
