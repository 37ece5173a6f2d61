"""Compared: what of pictures, clips and texts was laid side by side before, so that near twins are looked for among
what is new. In: rows by their names, with looks or sketches that are read where they are asked for. Out: near twins, as
all rows at once would give them; and for the next run, `resume/compared.npz`: names, by what the rows are looked up
(pictures' coarse shapes, bands of sketches), which rows had a near twin, and by how many projections they were looked
up.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from omniloom.infra import npy, storage
from omniloom.infra.artifacts import RESUME, Artifact
from omniloom.stages.ingest.splitting import twins
from omniloom.stages.ingest.splitting.twins import Since, Values

FILE = f"{RESUME}compared.npz"


@dataclass
class _Part:
    """Rows of one kind, in order."""

    names: np.ndarray  # uint64 (n, 2)
    looked_up: np.ndarray
    paired: np.ndarray  # bool (n,)
    projections: np.ndarray  # int (windows,); empty of texts


class Compared:
    def __init__(self, earlier: Artifact | None = None):
        self._old: dict[str, _Part] = {}
        self._new: dict[str, _Part] = {}
        if earlier:
            held = npy.load_all(io.BytesIO(storage.read_bytes(earlier.file(FILE))))
            for kind in {name.partition(".")[0] for name in held}:
                fields = ("names", "looked_up", "paired", "projections")
                self._old[kind] = _Part(*(held[f"{kind}.{field}"] for field in fields))

    def write(self, output: str) -> None:
        arrays = {f"{kind}.{name}": array for kind, part in self._new.items() for name, array in vars(part).items()}
        with storage.writing(storage.join(output, FILE)) as file:
            np.savez(file, **arrays)

    def near_pictures(self, kind: str, names: np.ndarray, looks: Values) -> np.ndarray:
        """Pairs of rows; `names`, uint64 (n, 2): of identities, which no two rows share."""
        shapes, place = self._looked_up(kind, names, looks, twins.shapes)
        projections, since = twins.projections(shapes), None
        if (old := self._old.get(kind)) and np.array_equal(projections, old.projections):
            since = _since(place, old)
        return self._note(kind, names, shapes, projections, twins.near_pictures(looks, shapes, since, projections))

    def near_texts(self, names: np.ndarray, sketches: Values) -> np.ndarray:
        """Pairs of rows; `names`, uint64 (n, 2): of what the sketches are of, another one for each row."""
        bands, place = self._looked_up("texts", names, sketches, twins.bands)
        since = _since(place, old) if (old := self._old.get("texts")) else None
        return self._note(
            "texts", names, bands, np.empty(0, int), twins.near_texts(sketches, looked_up=bands, since=since)
        )

    def _looked_up(self, kind: str, names: np.ndarray, values: Values, make) -> tuple[np.ndarray, np.ndarray]:
        """What the rows are looked up by, made of those that are new; and the place of each among the old ones, -1
        where it is new."""
        if not (old := self._old.get(kind)):
            return make(values, np.arange(len(names))), np.full(len(names), -1)
        place = _places(names, old.names)
        found, new = old.looked_up[place], np.flatnonzero(place < 0)
        found[new] = make(values, new)
        return found, place

    def _note(self, kind: str, names: np.ndarray, looked_up: np.ndarray, projections, pairs: np.ndarray) -> np.ndarray:
        paired = np.zeros(len(names), bool)
        paired[pairs.ravel()] = True
        self._new[kind] = _Part(names, looked_up, paired, projections)
        return pairs


def _since(place: np.ndarray, old: _Part) -> Since:
    """`place` of each row among the old ones, -1 where it is new."""
    gone = np.ones(len(old.names), bool)
    gone[place[place >= 0]] = False
    asked = place < 0
    asked[~asked] = old.paired[place[~asked]]
    return Since(asked, old.looked_up[gone])


def _places(names: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Of each name, int64; -1 where it is not there."""
    if not len(among):
        return np.full(len(names), -1)
    order = np.argsort(among[:, 0], kind="stable")
    found = np.searchsorted(among[order, 0], names[:, 0])
    found[found == len(among)] = 0
    found = order[found]
    return np.where((among[found] == names).all(1), found, -1)
