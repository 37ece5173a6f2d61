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

import hashlib
from collections.abc import Mapping

import numpy as np

from omniloom.stages.data import records
from omniloom.stages.ingest.splitting.bonds import Bonds, Rows
from omniloom.stages.ingest.splitting.compared import Compared
from omniloom.stages.ingest.splitting.sketched import Read

HELD_OUT = ("test", "validation")  # in the order in which a cluster takes them
_BLOCK = 1 << 18  # records worked on at once
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
    bonds = Bonds(rows, read)
    clusters, near = bonds.clusters(compared or Compared())
    own = own_splits(rows.key[:, 0], fractions)
    shares = _Shares(rows, clusters, own, fractions)
    by_need = shares.divide()
    counts = {
        "groups": int(_firsts(bonds.nodes).sum()),
        "near_twins": near,
        "split_clusters": len(own) - len(shares.rows) + len(shares.sizes),
        "largest_cluster": int(max(shares.sizes, default=min(1, len(own)))),
        "held_out_for_want": by_need,
    }
    return shares.of_rows(), own, counts


def own_splits(first: np.ndarray, fractions: Mapping[str, float]) -> np.ndarray:
    """Places in `records.SPLITS`, uint8, of what `records.split_of` says of keys with these first 64 bits."""
    test, validation = (fractions.get(split, 0.0) for split in HELD_OUT)
    rest = records.SPLITS.index(records.split_of("f" * 16, fractions))
    found = np.full(len(first), rest, np.uint8)
    for at in range(0, len(first), _BLOCK):
        position = first[at : at + _BLOCK].astype(np.float64) / 2**64
        block = found[at : at + _BLOCK]
        block[position < test + validation] = records.SPLITS.index("validation")
        block[position < test] = records.SPLITS.index("test")
    return found


_TRAIN, *_HELD = (records.SPLITS.index(split) for split in ("train", *HELD_OUT))


class _Shares:
    """The split of every record, by rules 2 to 4 above. Most records are a cluster of their own, so arrays of clusters
    are of those of several records alone: numbers 0..m-1, of the records `rows`."""

    def __init__(self, rows: Rows, clusters: np.ndarray, own: np.ndarray, fractions: Mapping[str, float]):
        """`clusters`: of each record the first of its cluster. `own`: places in `records.SPLITS`."""
        self.fractions, self._keys, self._stratum = fractions, rows.key, rows.stratum
        self._alone = _alone(clusters)
        self._of_records = own.copy()
        self.rows = np.flatnonzero(~self._alone)
        _, self._cluster = np.unique(clusters[self.rows], return_inverse=True)
        kinds, strata, self.count = len(records.KINDS), len(rows.strata), int(self._cluster.max(initial=-1)) + 1
        keys = rows.key[self.rows]
        order = np.lexsort((keys[:, 1], keys[:, 0], self._cluster))
        first = np.searchsorted(self._cluster[order], np.arange(self.count))
        self._least = keys[order[first]]  # of each cluster: its lowest key
        self._splits = own_splits(self._least[:, 0], fractions)
        codes = self._cluster * kinds + rows.kind[self.rows]
        self._kinds = np.bincount(codes, minlength=self.count * kinds).reshape(-1, kinds)
        self._totals = np.bincount(rows.kind, minlength=kinds)
        self.sizes = self._kinds.sum(1)
        codes, self._counts = np.unique(
            rows.stratum[self.rows].astype(np.int64) * self.count + self._cluster, return_counts=True
        )
        self._held = codes % max(1, self.count)  # clusters, stratum by stratum, with their `counts` of records there
        self._ends = np.searchsorted(codes, np.arange(strata + 1) * self.count)
        self._singles = np.bincount(rows.stratum[self._alone], minlength=strata)
        self._strata = sorted(range(strata), key=rows.strata.__getitem__)

    def of_rows(self) -> np.ndarray:
        """Of each record a place in `records.SPLITS`, uint8."""
        found = self._of_records.copy()
        found[self.rows] = self._splits[self._cluster]
        return found

    def divide(self) -> int:
        """How many records rule 4 has moved."""
        if self.fractions.get("train", 0.0) <= 0:
            return 0
        moved = 0
        for name, split in zip(HELD_OUT, _HELD, strict=True):
            most = np.maximum(_SMALL, _LARGE * self.fractions.get(name, 0.0) * self._totals)
            self._splits[(self._splits == split) & (self._kinds > most).any(1)] = _TRAIN
        for stratum in self._strata:
            for name, split in zip(HELD_OUT, _HELD, strict=True):
                moved += self._fill(stratum, self.fractions.get(name, 0.0), split)
        return moved

    def _fill(self, stratum: int, share: float, split: int) -> int:
        """Bring one cluster of the stratum to a split that ought to hold some of it and has none."""
        start, stop = self._ends[stratum : stratum + 2]
        clusters, singles = self._held[start:stop], int(self._singles[stratum])
        total = singles + int(self._counts[start:stop].sum())
        if total < 2 * (singles + len(clusters)) or share * total < 1:
            return 0
        alone = np.flatnonzero(self._alone & (self._stratum == stratum))  # clusters in several follow on these
        counts = np.concatenate([np.ones(singles, np.int64), self._counts[start:stop]])
        splits = np.concatenate([self._of_records[alone], self._splits[clusters]])
        least = np.concatenate([self._keys[alone], self._least[clusters]])
        if (splits == split).any():
            return 0
        left = np.flatnonzero(splits == _TRAIN)
        others = sum(
            1
            for name, other in zip(HELD_OUT, _HELD, strict=True)
            if self.fractions.get(name, 0.0) > 0 and other != split and not (splits == other).any()
        )
        if len(left) < 2 + others:
            return 0
        fit = left[counts[left] <= _LARGE * share * total]
        by_size = () if len(fit) else (counts[left],)
        some = fit if len(fit) else left
        chosen = some[np.lexsort((least[some, 1], least[some, 0], *by_size))[0]]
        if counts[chosen] * 2 > total:
            return 0
        if chosen < singles:
            self._of_records[alone[chosen]] = split
            return 1
        self._splits[clusters[chosen - singles]] = split
        return int(self.sizes[clusters[chosen - singles]])


def _alone(clusters: np.ndarray) -> np.ndarray:
    """bool (n,): whether the record is all of its cluster."""
    found = _firsts(clusters)
    found[clusters[~found]] = False
    return found


def _firsts(first: np.ndarray) -> np.ndarray:
    """bool (n,): whether the record is the `first` one of its own."""
    found = np.empty(len(first), bool)
    for at in range(0, len(first), _BLOCK):
        block = first[at : at + _BLOCK]
        found[at : at + _BLOCK] = block == np.arange(at, at + len(block))
    return found
