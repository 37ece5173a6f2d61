"""Splits: held out means unseen. Which of train, validation and test each record lies in, once all are known.

In: of each record what `stages.ingest.splitting.keys` keeps. Out: the split of each, the one that its own key says, and
counts.

1. A record's key is its group's, where it has one (a `group` of its manifest; the file of a text or a document), else
   its content's identity. `records.split_of` of the key is the split that the record has by itself.
2. Groups with a picture in common (a document's and a folder's too), or near twins (`stages.ingest.splitting.twins`),
   are one cluster. A cluster lies where the most held-out of its groups does: test before validation before train. So
   records that come later never take one out of test. A picture in more than `_DECORATION` documents binds none of
them. 3. A cluster of more than `_SMALL` records that is over twice a split's share of a kind stays in train.
4. Where the records of a source come in large groups (four books) and nothing is in a held-out split, the one of its
   clusters with the lowest key that is not too large goes there; the smallest, where all are. This alone can change
   back as a corpus grows: a file with a lower key then takes its place.

Memory: some 300 bytes a record; looks and sketches lie in a temporary file.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from omniloom.stages.data import records
from omniloom.stages.data.media.identity import CLIP_FRAMES, LOOK_BYTES
from omniloom.stages.data.media.sketches import SKETCH
from omniloom.stages.ingest.splitting.compared import Compared

HELD_OUT = ("test", "validation")  # in the order in which a cluster takes them
_DECORATION = 16  # documents that hold a picture, at most, for it to bind them
_LARGE, _SMALL = 2.0, 8  # times a split's share that is too large; records of a cluster that never is

KEYS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("part", pa.int32(), nullable=False),
        pa.field("group", pa.string()),  # 64 hex digits; null where the record stands for itself
        pa.field("pictures", pa.list_(pa.string()), nullable=False),  # identities of the pictures and clips in it
        pa.field("looks", pa.list_(pa.binary()), nullable=False),  # of each of them
        pa.field("sketch", pa.binary()),  # of its text
    ]
)


def group_key(kind: str, name: str) -> str:
    """The key of a group: of a `file` by its path below the source's root, or `named` by a manifest."""
    return hashlib.sha256(f"{kind} {name}".encode()).hexdigest()


def own_split(row: Mapping, fractions: Mapping[str, float]) -> str:
    return records.split_of(row["group"] or row["id"], fractions)


def own_splits(keys: bytes, fractions: Mapping[str, float]) -> np.ndarray:
    """The splits of many keys, as places in `records.SPLITS`, uint8. `keys`: the first eight bytes of each."""
    position = np.frombuffer(keys, ">u8").astype(np.float64) / 2**64
    test, validation = (fractions.get(split, 0.0) for split in HELD_OUT)
    rest = records.SPLITS.index(records.split_of("f" * 16, fractions))
    found = np.where(position < test + validation, records.SPLITS.index("validation"), rest)
    return np.where(position < test, records.SPLITS.index("test"), found).astype(np.uint8)


def assign(
    rows: Iterable[Mapping], fractions: Mapping[str, float], compared: Compared | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The split of each record and the one that it has by itself, as places in `records.SPLITS`; and counts.

    `rows`: dictionaries of `KEYS`, in the order of the sources. `compared` is what an earlier run has compared.
    """
    with tempfile.TemporaryFile() as pictures, tempfile.TemporaryFile() as clips, tempfile.TemporaryFile() as texts:
        corpus = _Corpus(_Rows(pictures, LOOK_BYTES), _Rows(clips, CLIP_FRAMES * LOOK_BYTES), _Rows(texts, 4 * SKETCH))
        for row in rows:
            corpus.add(row)
        clusters, near = corpus.clusters(compared or Compared())
    splits, by_need = _Shares(corpus, clusters, fractions).splits()
    codes = {split: code for code, split in enumerate(records.SPLITS)}
    nodes = np.array(corpus.nodes, np.int64)
    of_nodes = np.array([codes[splits[cluster]] for cluster in clusters.tolist()], np.uint8)
    own = _own(corpus.positions, fractions)
    sizes = np.bincount(np.unique(clusters[nodes], return_inverse=True)[1]) if len(nodes) else np.zeros(1, int)
    return (
        of_nodes[nodes],
        own[nodes],
        {
            "groups": len(corpus.positions),
            "near_twins": near,
            "split_clusters": int((sizes > 0).sum()),
            "largest_cluster": int(sizes.max()),
            "held_out_for_want": by_need,
        },
    )


def _own(keys: list[str], fractions: Mapping[str, float]) -> np.ndarray:
    """Places in `records.SPLITS` of what `records.split_of` says of each key."""
    return own_splits(bytes.fromhex("".join(key[:16] for key in keys)), fractions)


class _Rows:
    """Rows of bytes in a file, appended, then read as an array."""

    def __init__(self, file, width: int):
        self.file, self.width, self.count = file, width, 0

    def append(self, row: bytes) -> int:
        self.file.write(row)
        self.count += 1
        return self.count - 1

    def array(self, dtype) -> np.ndarray:
        self.file.flush()
        shape = (self.count, self.width // np.dtype(dtype).itemsize)
        return np.memmap(self.file, dtype, "r", shape=shape) if self.count else np.empty(shape, dtype)


class _Corpus:
    """Groups (a record without one is its own), pictures, and what binds them."""

    def __init__(self, looks: _Rows, clips: _Rows, sketches: _Rows):
        self.looks, self.clips, self.sketches = looks, clips, sketches
        self.positions: list[str] = []  # of each group: its key
        self.nodes: list[int] = []  # of each record: its group
        self.strata: list[int] = []  # of each record: which of `names`
        self.names: dict[tuple[str, str], int] = {}  # (source, kind)
        self._groups: dict[bytes, int] = {}
        self._pictures: dict[bytes, int] = {}  # identity -> row of its look
        self._of_clips: list[int] = []  # of each clip's look: the group
        self._clip_ids: list[bytes] = []
        self._bonds: list[tuple[int, int]] = []  # (group, picture)
        self._documents: list[tuple[int, int]] = []  # likewise, of documents, which a decoration does not bind
        self._texts: list[int] = []  # of each sketch: the group
        self._grouped_texts: dict[int, np.ndarray] = {}

    def add(self, row: Mapping) -> None:
        node = self._node(row)
        self.nodes.append(node)
        self.strata.append(self.names.setdefault((row["source"], row["kind"]), len(self.names)))
        if row["kind"] == "video":  # each of them once: duplicates are gone
            self.clips.append(row["looks"][0])
            self._of_clips.append(node)
            self._clip_ids.append(bytes.fromhex(row["id"]))
        for identity, look in zip(row["pictures"], row["looks"], strict=True) if row["kind"] != "video" else ():
            key = bytes.fromhex(identity)
            if (picture := self._pictures.get(key)) is None:
                picture = self._pictures[key] = self.looks.append(look)
            (self._documents if row["kind"] == "document" else self._bonds).append((node, picture))
        if row["sketch"] and row["group"]:
            sketch = np.frombuffer(row["sketch"], np.uint32)
            known = self._grouped_texts.get(node)
            self._grouped_texts[node] = sketch if known is None else np.minimum(known, sketch)
        elif row["sketch"]:
            self.sketches.append(row["sketch"])
            self._texts.append(node)

    def _node(self, row: Mapping) -> int:
        if row["group"]:
            key = bytes.fromhex(row["group"])
            if (node := self._groups.get(key)) is not None:
                return node
            self._groups[key] = len(self.positions)
        self.positions.append(row["group"] or row["id"])
        return len(self.positions) - 1

    def clusters(self, compared: Compared) -> tuple[np.ndarray, int]:
        """int64 (groups,): the cluster of each, named by one of its members; and the records that have a near twin."""
        for node, sketch in self._grouped_texts.items():
            self.sketches.append(sketch.tobytes())
            self._texts.append(node)
        pictures = compared.near_pictures("pictures", list(self._pictures), self.looks.array(np.uint8))
        groups = np.concatenate(
            [
                np.array(self._of_clips, np.int64)[
                    compared.near_pictures("clips", self._clip_ids, self.clips.array(np.uint8))
                ],
                np.array(self._texts, np.int64)[compared.near_texts(self.sketches.array(np.uint32))],
            ]
        )
        count = len(self.positions)
        union = _Union(count + self.looks.count)
        documents = np.array(self._documents, np.int64).reshape(-1, 2)
        held = np.bincount(documents[:, 1], minlength=self.looks.count) if len(documents) else np.zeros(0, int)
        bonds = [*self._bonds, *(bond for bond in self._documents if held[bond[1]] <= _DECORATION)]
        for node, picture in bonds:
            union.join(node, count + picture)
        for a, b in pictures.tolist():
            union.join(count + a, count + b)
        for a, b in groups.tolist():
            union.join(a, b)
        seen = set(pictures.ravel().tolist())
        near = {node for node, picture in bonds if picture in seen} | set(groups.ravel().tolist())
        return union.roots()[:count], int(np.isin(self.nodes, sorted(near)).sum())


class _Union:
    """Disjoint sets of 0..n-1; a set is named by its least member."""

    def __init__(self, n: int):
        self.parent = list(range(n))

    def find(self, a: int) -> int:
        while self.parent[a] != a:
            self.parent[a] = a = self.parent[self.parent[a]]
        return a

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        self.parent[max(a, b)] = min(a, b)

    def roots(self) -> np.ndarray:
        return np.array([self.find(a) for a in range(len(self.parent))], np.int64)


class _Shares:
    """The split of every cluster, by rules 2 to 4 above."""

    def __init__(self, corpus: _Corpus, clusters: np.ndarray, fractions: Mapping[str, float]):
        self.fractions, self.names = fractions, list(corpus.names)
        self.least: dict[int, str] = {}
        for position, cluster in zip(corpus.positions, clusters.tolist(), strict=True):
            self.least[cluster] = min(position, self.least.get(cluster, position))
        found: np.ndarray
        counts: Any
        found, counts = (
            np.unique(
                np.stack([clusters[corpus.nodes], np.array(corpus.strata, np.int64)], axis=1),
                axis=0,
                return_counts=True,
            )
            if corpus.nodes
            else (np.empty((0, 2), int), [])
        )
        self.held: dict[int, dict[int, int]] = {}  # stratum -> cluster -> records
        for (cluster, stratum), n in zip(found.tolist(), counts, strict=True):
            self.held.setdefault(stratum, {})[cluster] = int(n)
        self.kinds: dict[str, dict[int, int]] = {}
        for stratum, held in self.held.items():
            of_kind = self.kinds.setdefault(self.names[stratum][1], {})
            for cluster, n in held.items():
                of_kind[cluster] = of_kind.get(cluster, 0) + n

    def splits(self) -> tuple[dict[int, str], int]:
        """{cluster: split}, and how many records rule 4 has moved."""
        own = _own(list(self.least.values()), self.fractions).tolist()
        splits = {cluster: records.SPLITS[code] for cluster, code in zip(self.least, own, strict=True)}
        if self.fractions.get("train", 0.0) <= 0:
            return splits, 0
        for cluster, split in splits.items():
            if split in HELD_OUT and self._too_large(cluster, split):
                splits[cluster] = "train"
        moved = 0
        for stratum in sorted(self.held, key=self.names.__getitem__):
            for split in HELD_OUT:
                moved += self._fill(stratum, split, splits)
        return splits, moved

    def _too_large(self, cluster: int, split: str) -> bool:
        return any(
            held.get(cluster, 0) > max(_SMALL, _LARGE * self.fractions[split] * sum(held.values()))
            for held in self.kinds.values()
        )

    def _fill(self, stratum: int, split: str, splits: dict[int, str]) -> int:
        """Bring one cluster of the stratum to a split that ought to hold some of it and has none."""
        held, share = self.held[stratum], self.fractions.get(split, 0.0)
        total = sum(held.values())
        if total < 2 * len(held) or share * total < 1 or any(splits[cluster] == split for cluster in held):
            return 0
        left = [cluster for cluster in held if splits[cluster] == "train"]
        others = sum(
            1
            for other in HELD_OUT
            if self.fractions.get(other, 0.0) > 0
            and other != split
            and not any(splits[cluster] == other for cluster in held)
        )
        if len(left) < 2 + others:
            return 0
        fit = [cluster for cluster in left if held[cluster] <= _LARGE * share * total]
        chosen = (
            min(fit, key=self.least.__getitem__)
            if fit
            else min(left, key=lambda cluster: (held[cluster], self.least[cluster]))
        )
        if held[chosen] * 2 > total:
            return 0
        splits[chosen] = split
        return sum(of_kind.get(chosen, 0) for of_kind in self.kinds.values())
