"""Settling: which records a corpus has, once all that was read is known.

In: the keys of all records, in the order of the sources. Out: `stages.data.changes` beside the shards, the lists of
duplicates for people, and counts.

1. Of records with one content the first stays, with the captions of all.
2. Each of those lies in the split that `stages.ingest.splitting.splits` gives it.
3. Records of an item that is no more are dropped.

All of it follows from the keys alone, whichever shards the records lie in: a corpus that has grown is settled as one
that was read at once, and a pass that was killed is made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.stages.data import changes
from omniloom.stages.data.changes import Changes
from omniloom.stages.data.records import KINDS, SPLITS
from omniloom.stages.ingest.splitting import keys, splits
from omniloom.stages.ingest.splitting.bonds import Rows
from omniloom.stages.ingest.splitting.columns import digits, numbered, whole
from omniloom.stages.ingest.splitting.compared import Compared
from omniloom.stages.ingest.splitting.keys import Corpus

_COLUMNS = ("id", "kind", "source", "group", "pictures", "sketched", "captioned", "synthetic", "multipage")


@dataclass
class Settled:
    """`counts` are those of `stages.data.records.counts` and of `stages.ingest.splitting.splits`. `records` has for
    each item's place how many records were read of it; of the records that are left `places` are those of their items,
    and `kinds` places in KINDS."""

    counts: dict[str, int | float]
    duplicates: int
    places: np.ndarray
    kinds: np.ndarray
    records: np.ndarray


@dataclass
class _Found:
    """What was read, in the order of the sources: `rows`, and an array each of the places of the records' items, of how
    many captions they have, and of whether they are synthetic and of pages. `gone`: by the name of a shard the rows
    there that are of no item any more."""

    rows: Rows
    place: np.ndarray
    captions: np.ndarray
    synthetic: np.ndarray
    multipage: np.ndarray
    gone: dict[str, set[int]]


def settle(corpus: Corpus, items: int, fractions: dict[str, float], earlier: Artifact | None = None) -> Settled:
    """`items`: how many there are. `earlier`: the artifact that the corpus is built on."""
    found = _read(corpus)
    rows = found.rows
    owners = numbered(rows.id)[1]
    stays = np.zeros(len(rows.id), bool)
    stays[owners] = True
    made = {name: Changes(dropped=set(gone)) for name, gone in found.gone.items()}

    def change(n: int) -> Changes:
        """Of the shard of the record at place n."""
        return made.setdefault(corpus.names[rows.shard[n]], Changes())

    for n in np.flatnonzero(~stays).tolist():
        change(n).dropped.add(int(rows.row[n]))
    captions = found.captions.copy()
    _write_duplicates(corpus, rows, stays, change, captions)
    compared = Compared(earlier)
    codes, own, counts = splits.assign(rows.where(stays), corpus.values, fractions, compared)
    compared.write(corpus.output)
    left = np.flatnonzero(stays)
    for n in np.flatnonzero(codes != own).tolist():
        change(left[n]).splits[int(rows.row[left[n]])] = SPLITS[codes[n]]
    changes.write(corpus.output, {name: change for name, change in made.items() if change.rows()})
    told = _counts(found, stays, codes, captions[stays])
    of_items = np.bincount(found.place, minlength=items)
    return Settled({**told, **counts}, int((~stays).sum()), found.place[stays], rows.kind[stays], of_items)


def _read(corpus: Corpus) -> _Found:
    """Shard by shard, then brought into order: those of one item lie in one group of shards, in order."""
    parts: dict[str, list[np.ndarray]] = {}
    strata: dict[tuple[str, str], int] = {}
    gone: dict[str, set[int]] = {}
    total = 0
    for shard, (table, place) in enumerate(corpus.tables(_COLUMNS)):
        live = place >= 0
        if not live.all():
            gone[corpus.names[shard]] = set(np.flatnonzero(~live).tolist())
        pictures = whole(table["pictures"])
        counts = pc.list_value_length(pictures).to_numpy()
        ids = digits(table["id"])
        grouped = table["group"].is_valid().to_numpy()
        key = ids.copy()
        key[grouped] = digits(table["group"].drop_null())
        arrays = {
            "id": ids,
            "key": key,
            "kind": pc.index_in(table["kind"], pa.array(KINDS)).to_numpy().astype(np.uint8),
            "stratum": _strata(table, strata),
            "sketched": table["sketched"].to_numpy().astype(bool),
            "shard": np.full(len(table), shard, np.uint32),
            "row": np.arange(len(table), dtype=np.uint32),
            "place": place,
            "captions": table["captioned"].to_numpy().astype(np.int32),
            "synthetic": table["synthetic"].to_numpy().astype(bool),
            "multipage": table["multipage"].to_numpy().astype(bool),
            "first": total + np.cumsum(counts) - counts,  # of its pictures
            "count": counts,
        }
        for name, values in arrays.items():
            parts.setdefault(name, []).append(values[live])
        parts.setdefault("pictures", []).append(digits(pictures.flatten()))
        total += len(parts["pictures"][-1])
    joined = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    order = np.argsort(joined["place"], kind="stable")
    pictures = joined.pop("pictures")
    joined = {name: values[order] for name, values in joined.items()}
    counts = joined.pop("count")
    firsts = joined.pop("first") - (np.cumsum(counts) - counts)
    shown = np.arange(counts.sum()) + np.repeat(firsts, counts)
    others = {name: joined.pop(name) for name in ("place", "captions", "synthetic", "multipage")}
    owner = np.repeat(np.arange(len(counts)), counts)
    return _Found(Rows(**joined, strata=list(strata), pictures=pictures[shown], owner=owner), **others, gone=gone)


def _strata(table: pa.Table, strata: dict[tuple[str, str], int]) -> np.ndarray:
    """The number of each record's source and kind; new ones are added."""
    source, kind = (whole(table[name]).dictionary_encode() for name in ("source", "kind"))
    codes = source.indices.to_numpy().astype(np.int64) * len(kind.dictionary) + kind.indices.to_numpy()
    found, where = np.unique(codes, return_inverse=True)
    pairs = [divmod(code, len(kind.dictionary)) for code in found.tolist()]
    names = [(source.dictionary[a].as_py(), kind.dictionary[b].as_py()) for a, b in pairs]
    return np.array([strata.setdefault(name, len(strata)) for name in names], np.int32)[where]


def _write_duplicates(
    corpus: Corpus, rows: Rows, stays: np.ndarray, change: Callable[[int], Changes], counts: np.ndarray
) -> None:
    """`duplicates/`: every record whose content came before, and the captions of those that stay in their place."""
    copies = np.flatnonzero(~stays)
    lines, captioned = [], []
    if len(copies):
        numbers, firsts = numbered(rows.id)
        owners = firsts[np.unique(numbers[copies])].tolist()
        told = _told(corpus, rows, np.array([*owners, *copies.tolist()]))
        new: dict[str, list[str]] = {}
        for n in copies.tolist():
            row = told[n]
            lines.append({name: row[name] for name in ("source", "path", "part", "id", "shard")})
            new.setdefault(row["id"], []).extend(row["captions"] or ())
        for n in owners:
            row = told[n]
            first = row["captions"] or []
            both = list(dict.fromkeys([*first, *new[row["id"]]]))
            if len(both) > len(first):
                change(n).captions[int(rows.row[n])] = both
                counts[n] = len(both)
                captioned.append(
                    {**{name: row[name] for name in ("source", "path", "part", "shard")}, "captions": both}
                )
    for name, listed in (("duplicates", lines), ("captions", captioned)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in listed)
        storage.write_bytes(storage.join(corpus.output, "duplicates", f"{name}.jsonl"), text.encode())


def _told(corpus: Corpus, rows: Rows, wanted: np.ndarray) -> dict[int, dict]:
    """Of some of the records what the lists of duplicates say, and the name of the shard."""
    told: dict[int, dict] = {}
    wanted = wanted[np.argsort(rows.shard[wanted], kind="stable")]
    shards, starts = np.unique(rows.shard[wanted], return_index=True)
    for shard, numbers in zip(shards.tolist(), np.split(wanted, starts[1:]), strict=True):
        name = corpus.names[shard]
        table = keys.read(corpus.output, name, ["source", "path", "part", "id", "captions"])
        listed = table.take(pa.array(rows.row[numbers])).to_pylist()
        told |= {n: {**row, "shard": name} for n, row in zip(numbers.tolist(), listed, strict=True)}
    return told


def _counts(found: _Found, stays: np.ndarray, codes: np.ndarray, captions: np.ndarray) -> dict[str, int | float]:
    """What `stages.data.records.counts` says of them."""
    kinds, train = found.rows.kind[stays], codes == SPLITS.index("train")
    synthetic, pictures = int(found.synthetic[stays].sum()), kinds <= KINDS.index("video")
    numbers: dict[str, int | float] = {
        "records": len(kinds),
        "synthetic": synthetic,
        "synthetic_fraction": synthetic / max(1, len(kinds)),
        "uncaptioned": int((captions[pictures] == 0).sum()),
        "captions": int(captions[pictures].sum()),
        "multipage": int(found.multipage[stays].sum()),
    }
    for code, kind in enumerate(KINDS):
        numbers[f"records_{kind}"] = int((kinds == code).sum())
        numbers[f"records_train_{kind}"] = int(train[kinds == code].sum())
    return numbers | {f"records_{split}": int((codes == code).sum()) for code, split in enumerate(SPLITS)}
