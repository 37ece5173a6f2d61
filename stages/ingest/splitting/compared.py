"""Compared: what of pictures, clips and texts was laid side by side before, so that near twins are looked for among
what is new. In: the rows of this run by their names. Out: near twins, as all rows at once would give them; and for the
next run, `resume/compared.npz`: names, coarse shapes (of texts sketches), which rows had a near twin, and by how many
projections they were looked up.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from omniloom.infra import npy, storage
from omniloom.infra.artifacts import RESUME, Artifact
from omniloom.stages.ingest.splitting import twins
from omniloom.stages.ingest.splitting.twins import Since

FILE = f"{RESUME}compared.npz"
NAME = 32  # bytes


@dataclass
class _Part:
    """Rows of one kind, in order."""

    names: np.ndarray  # uint8 (n, NAME)
    shapes: np.ndarray
    paired: np.ndarray  # bool (n,)
    projections: np.ndarray  # int (windows,); empty of texts


class Compared:
    def __init__(self, earlier: Artifact | None = None):
        self._old: dict[str, _Part] = {}
        self._new: dict[str, _Part] = {}
        if earlier:
            held = npy.load_all(io.BytesIO(storage.read_bytes(earlier.file(FILE))))
            for kind in {name.partition(".")[0] for name in held}:
                fields = ("names", "shapes", "paired", "projections")
                self._old[kind] = _Part(*(held[f"{kind}.{field}"] for field in fields))

    def write(self, output: str) -> None:
        arrays = {f"{kind}.{name}": array for kind, part in self._new.items() for name, array in vars(part).items()}
        sink = io.BytesIO()
        np.savez(sink, **arrays)
        storage.write_bytes(storage.join(output, FILE), sink.getvalue())

    def near_pictures(self, kind: str, names: list[bytes], looks: np.ndarray) -> np.ndarray:
        """Pairs of rows; `names`: identities, which no two rows share."""
        own, old = _rows(names), self._old.get(kind)
        place = _places(own, old.names if old else own[:0])
        new = np.flatnonzero(place < 0)
        shapes = twins.shapes(looks[new]) if old is None or len(new) == len(place) else old.shapes[place]
        if old is not None and 0 < len(new) < len(place):
            shapes[new] = twins.shapes(looks[new])
        projections = twins.projections(shapes)
        since = None
        if old is not None and np.array_equal(projections, old.projections):
            since = _since(place, old)
        return self._note(kind, own, shapes, projections, twins.near_pictures(looks, shapes, since, projections))

    def near_texts(self, sketches: np.ndarray) -> np.ndarray:
        """Pairs of rows. Texts of one sketch are each other's twins: they are compared each time."""
        own = _rows([blake2b(sketch.tobytes(), digest_size=NAME).digest() for sketch in sketches])
        since = None
        if old := self._old.get("texts"):
            place = _places(own, old.names)
            place[_repeated(own)] = -1
            since = _since(place, old)
        return self._note("texts", own, sketches, np.empty(0, int), twins.near_texts(sketches, since=since))

    def _note(self, kind: str, names: np.ndarray, shapes: np.ndarray, projections, pairs: np.ndarray) -> np.ndarray:
        paired = np.zeros(len(names), bool)
        paired[pairs.ravel()] = True
        self._new[kind] = _Part(names, np.asarray(shapes), paired, projections)
        return pairs


def _since(place: np.ndarray, old: _Part) -> Since:
    """`place` of each row among the old ones, -1 where it is new."""
    gone = np.ones(len(old.names), bool)
    gone[place[place >= 0]] = False
    asked = place < 0
    asked[~asked] = old.paired[place[~asked]]
    return Since(asked, old.shapes[gone])


def _rows(names: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(names), np.uint8).reshape(-1, NAME)


def _first(names: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(names[:, :8]).view("<u8")[:, 0]


def _places(names: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Of each name, int64; -1 where it is not there."""
    if not len(among):
        return np.full(len(names), -1)
    order = np.argsort(_first(among), kind="stable")
    found = np.searchsorted(_first(among)[order], _first(names))
    found[found == len(among)] = 0
    found = order[found]
    return np.where((among[found] == names).all(1), found, -1)


def _repeated(names: np.ndarray) -> np.ndarray:
    """bool (n,): whether another row has the name."""
    _, where, counts = np.unique(_first(names), return_inverse=True, return_counts=True)
    return counts[where] > 1
