"""Splits: held out means unseen. Which of train, validation and test each record lies in, once all are known.

In: of each record what `stages.ingest.splitting.keys` keeps. Out: the split of each, the one that its own key says, and
counts.

1. A record's key is its group's, where it has one (a `group` of its manifest; the file of a text or a document), else
   its content's identity. `records.split_of` of the key is the split that the record has by itself.
2. Groups with a picture in common (a document's and a folder's too), or near twins (`stages.ingest.splitting.twins`),
   are one cluster. A cluster lies where the most held-out of its groups does: test before validation before train. So
   records that come later never take one out of test. A picture in more than 16 documents binds none of them.
3. A cluster of more than `_SMALL` records that is over twice a split's share of a kind stays in train.
4. Where the records of a source come in large groups (four books) and nothing is in a held-out split, the one of its
   clusters with the lowest key that is not too large goes there; the smallest, where all are. This alone can change
   back as a corpus grows: a file with a lower key then takes its place.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Mapping

import numpy as np

from omniloom.stages.data import records
from omniloom.stages.ingest.splitting.bonds import Bonds, Read, Rows
from omniloom.stages.ingest.splitting.compared import Compared

HELD_OUT = ("test", "validation")  # in the order in which a cluster takes them
_LARGE, _SMALL = 2.0, 8  # times a split's share that is too large; records of a cluster that never is


def group_key(kind: str, name: str) -> str:
    """The key of a group: of a `file` by its path below the source's root, or `named` by a manifest."""
    return hashlib.sha256(f"{kind} {name}".encode()).hexdigest()


def own_split(row: Mapping, fractions: Mapping[str, float]) -> str:
    return records.split_of(row["group"] or row["id"], fractions)


def assign(
    rows: Rows, read: Read, fractions: Mapping[str, float], compared: Compared | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """The split of each record and the one that it has by itself, as places in `records.SPLITS`; and counts.

    `rows` are in the order of the sources. `compared` is what an earlier run has compared.
    """
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        bonds = Bonds(rows, read, files)
        clusters, near = bonds.clusters(compared or Compared())
    keys, nodes = rows.key[bonds.firsts], bonds.nodes
    names, clusters = np.unique(clusters, return_inverse=True)
    shares = _Shares(keys, clusters, clusters[nodes], rows, fractions)
    by_need = shares.divide()
    sizes = np.bincount(clusters[nodes], minlength=1)
    return (
        shares.splits[clusters[nodes]],
        own_splits(keys[:, 0], fractions)[nodes],
        {
            "groups": len(keys),
            "near_twins": near,
            "split_clusters": len(names),
            "largest_cluster": int(sizes.max()),
            "held_out_for_want": by_need,
        },
    )


def own_splits(first: np.ndarray, fractions: Mapping[str, float]) -> np.ndarray:
    """Places in `records.SPLITS`, uint8, of what `records.split_of` says of keys with these first 64 bits."""
    position = first.astype(np.float64) / 2**64
    test, validation = (fractions.get(split, 0.0) for split in HELD_OUT)
    rest = records.SPLITS.index(records.split_of("f" * 16, fractions))
    found = np.where(position < test + validation, records.SPLITS.index("validation"), rest)
    return np.where(position < test, records.SPLITS.index("test"), found).astype(np.uint8)


_TRAIN, *_HELD = (records.SPLITS.index(split) for split in ("train", *HELD_OUT))


class _Shares:
    """The split of every cluster, by rules 2 to 4 above: `splits`, places in `records.SPLITS`."""

    def __init__(
        self, keys: np.ndarray, clusters: np.ndarray, of_rows: np.ndarray, rows: Rows, fractions: Mapping[str, float]
    ):
        """`keys` are those of the groups, `clusters` numbers of theirs, `of_rows` those of the records."""
        self.fractions, self.count = fractions, int(clusters.max()) + 1 if len(clusters) else 0
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        rank = np.empty(len(keys), np.int64)
        rank[order] = np.arange(len(keys))
        self.least = np.full(self.count, len(keys))
        np.minimum.at(self.least, clusters, rank)  # of each cluster: its lowest key, by its rank
        self.splits = own_splits(keys[order[self.least], 0], fractions)
        kinds, strata = len(records.KINDS), len(rows.strata)
        self.kinds = np.bincount(of_rows * kinds + rows.kind, minlength=self.count * kinds).reshape(-1, kinds)
        self.sizes = self.kinds.sum(1)
        codes, self.counts = np.unique(rows.stratum.astype(np.int64) * self.count + of_rows, return_counts=True)
        self.held = codes % max(1, self.count)  # clusters, stratum by stratum, with their `counts` of records there
        self.ends = np.searchsorted(codes, np.arange(strata + 1) * self.count)
        self.strata = sorted(range(strata), key=rows.strata.__getitem__)

    def divide(self) -> int:
        """How many records rule 4 has moved."""
        if self.fractions.get("train", 0.0) <= 0:
            return 0
        totals, moved = self.kinds.sum(0), 0
        for name, split in zip(HELD_OUT, _HELD, strict=True):
            most = np.maximum(_SMALL, _LARGE * self.fractions.get(name, 0.0) * totals)
            self.splits[(self.splits == split) & (self.kinds > most).any(1)] = _TRAIN
        for stratum in self.strata:
            for name, split in zip(HELD_OUT, _HELD, strict=True):
                moved += self._fill(slice(*self.ends[stratum : stratum + 2]), self.fractions.get(name, 0.0), split)
        return moved

    def _fill(self, stratum: slice, share: float, split: int) -> int:
        """Bring one cluster of the stratum to a split that ought to hold some of it and has none."""
        held, counts = self.held[stratum], self.counts[stratum]
        total, splits = int(counts.sum()), self.splits[held]
        if total < 2 * len(held) or share * total < 1 or (splits == split).any():
            return 0
        left = np.flatnonzero(splits == _TRAIN)
        others = sum(
            1
            for name, other in zip(HELD_OUT, _HELD, strict=True)
            if self.fractions.get(name, 0.0) > 0 and other != split and not (splits == other).any()
        )
        if len(left) < 2 + others:
            return 0
        least, fit = self.least[held], left[counts[left] <= _LARGE * share * total]
        chosen = fit[least[fit].argmin()] if len(fit) else left[np.lexsort((least[left], counts[left]))[0]]
        if counts[chosen] * 2 > total:
            return 0
        self.splits[held[chosen]] = split
        return int(self.sizes[held[chosen]])
