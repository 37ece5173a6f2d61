"""Settling: which records a corpus has, once all that was read is known.

In: the keys of all records, in the order of the sources. Out: `stages.data.changes` beside the shards, the lists of
duplicates for people, and counts.

1. Of records with one content the first stays, with the captions of all.
2. Each of those lies in the split that `stages.ingest.splitting.splits` gives it.
3. Records of an item that is no more are dropped.

Memory: some 70 bytes a record, of which 45 lie in temporary files that are mapped; 4 more for each thread while bands
of sketches are looked up; and a few shards' keys. Of records that have duplicates or near twins what these are, too.

All of it follows from the keys alone, whichever shards the records lie in: a corpus that has grown is settled as one
that was read at once, and a pass that was killed is made again.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
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
from omniloom.stages.ingest.splitting.columns import digits, ordered, repeats, whole
from omniloom.stages.ingest.splitting.compared import Compared
from omniloom.stages.ingest.splitting.keys import Corpus
from omniloom.stages.ingest.splitting.spilled import Column
from omniloom.stages.ingest.splitting.threads import side_by_side

_COLUMNS = ("id", "kind", "source", "group", "pictures", "sketched", "captioned", "synthetic", "multipage")


_TOLD = 8192  # duplicates that are held at once


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
    copies, firsts = repeats(rows.id)
    stays = np.ones(len(rows.id), bool)
    stays[copies] = False
    made = {name: Changes(dropped=set(gone)) for name, gone in found.gone.items()}

    def change(n: int) -> Changes:
        """Of the shard of the record at place n."""
        return made.setdefault(corpus.names[rows.shard[n]], Changes())

    for n in copies.tolist():
        change(n).dropped.add(int(rows.row[n]))
    _write_duplicates(corpus, found, copies, firsts, change)
    compared = Compared(earlier)
    codes, own, counts = splits.assign(rows.where(stays), corpus.values, fractions, compared)
    compared.write(corpus.output)
    left, changed = np.flatnonzero(stays), np.flatnonzero(codes != own)
    for n, code in zip(left[changed].tolist(), codes[changed].tolist(), strict=True):
        change(n).splits[int(rows.row[n])] = SPLITS[code]
    changes.write(corpus.output, {name: change for name, change in made.items() if change.rows()})
    told = _counts(found, stays, codes)
    of_items = np.bincount(found.place, minlength=items)
    return Settled({**told, **counts}, len(copies), found.place[stays], rows.kind[stays], of_items)


def _read(corpus: Corpus) -> _Found:
    """Shard by shard, then brought into order: those of one item lie in one group of shards, in order."""
    read: defaultdict[str, Column] = defaultdict(Column)
    strata: dict[tuple[str, str], int] = {}
    gone: dict[str, set[int]] = {}
    grouped = False
    none = _part(len(corpus.names), keys.SCHEMA.empty_table(), np.empty(0, np.int64))  # there may be no shard
    some = side_by_side(lambda shard: _part(shard, *corpus.table(shard, _COLUMNS)), range(len(corpus.names)))
    for part in itertools.chain(some, [none]):
        if len(part.gone):
            gone[corpus.names[part.shard]] = set(part.gone.tolist())
        numbers = np.array([strata.setdefault(name, len(strata)) for name in part.strata], np.int32)
        part.columns["stratum"] = numbers[part.columns["stratum"]]
        grouped |= part.grouped
        for name, values in part.columns.items():
            read[name].append(values)
    if not grouped:
        del read["key"]
    joined = {name: column.array() for name, column in read.items()}
    counts, pictures = joined.pop("pictures_of"), joined.pop("pictures")
    if not ordered(joined["place"]):
        order = np.argsort(joined["place"], kind="stable")
        firsts = (np.cumsum(counts, dtype=np.int64) - counts)[order]
        for name in joined:
            joined[name] = joined[name][order]
        counts = counts[order]
        pictures = pictures[_ranges(firsts, counts)]
    others = {name: joined.pop(name) for name in ("place", "captions", "synthetic", "multipage")}
    joined.setdefault("key", joined["id"])
    owner = np.repeat(np.arange(len(counts)), counts)
    rows = Rows(**joined, strata=list(strata), shards=corpus.names, pictures=pictures, owner=owner)
    return _Found(rows, **others, gone=gone)


def _ranges(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """From each first one so many, one after another."""
    ends = np.cumsum(counts, dtype=np.int64)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(firsts - (ends - counts), counts)


@dataclass
class _Part:
    """What of a shard is read: columns of the rows that are there, whose "stratum" is the number in `strata`."""

    shard: int
    columns: dict[str, np.ndarray]
    strata: list[tuple[str, str]]
    grouped: bool
    gone: np.ndarray


def _part(shard: int, table: pa.Table, place: np.ndarray) -> _Part:
    live, gone = np.flatnonzero(place >= 0), np.flatnonzero(place < 0)
    table, place = (table.take(pa.array(live)), place[live]) if len(gone) else (table, place)
    stratum, strata = _strata(table)
    pictures, ids = whole(table["pictures"]), digits(table["id"])
    grouped, key = table["group"].null_count < len(table), ids
    if grouped:
        key = ids.copy()
        key[table["group"].is_valid().to_numpy()] = digits(table["group"].drop_null())
    columns = {
        "id": ids,
        "key": key,
        "kind": pc.index_in(table["kind"], pa.array(KINDS)).to_numpy().astype(np.uint8),
        "stratum": stratum,
        "sketched": table["sketched"].to_numpy().astype(bool),
        "shard": np.full(len(live), shard, np.uint32),
        "row": live.astype(np.uint32),
        "place": place.astype(np.uint32),
        "captions": table["captioned"].to_numpy().astype(np.int32),
        "synthetic": table["synthetic"].to_numpy().astype(bool),
        "multipage": table["multipage"].to_numpy().astype(bool),
        "pictures_of": pc.list_value_length(pictures).to_numpy(),
        "pictures": digits(pictures.flatten()),
    }
    return _Part(shard, columns, strata, grouped, gone)


def _strata(table: pa.Table) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """The number of each record's source and kind, and these, in order."""
    source, kind = (whole(table[name]).dictionary_encode() for name in ("source", "kind"))
    codes = source.indices.to_numpy().astype(np.int64) * len(kind.dictionary) + kind.indices.to_numpy()
    found, where = np.unique(codes, return_inverse=True)
    pairs = [divmod(code, len(kind.dictionary)) for code in found.tolist()]
    return where, [(source.dictionary[a].as_py(), kind.dictionary[b].as_py()) for a, b in pairs]


def _write_duplicates(
    corpus: Corpus, found: _Found, copies: np.ndarray, firsts: np.ndarray, change: Callable[[int], Changes]
) -> None:
    """`duplicates/`: every record whose content came before, and the captions of those that stay in their place."""
    rows = found.rows
    new: dict[int, list[str]] = {}  # of the records that stay
    with storage.writing(storage.join(corpus.output, "duplicates", "duplicates.jsonl")) as file:
        for at in range(0, len(copies), _TOLD):
            told = _told(corpus, rows, copies[at : at + _TOLD])
            for n, first in zip(copies[at : at + _TOLD].tolist(), firsts[at : at + _TOLD].tolist(), strict=True):
                file.write(_line({name: told[n][name] for name in ("source", "path", "part", "id", "shard")}))
                if told[n]["captions"]:
                    new.setdefault(first, []).extend(told[n]["captions"])
    owners = np.array(sorted(new), np.int64)
    with storage.writing(storage.join(corpus.output, "duplicates", "captions.jsonl")) as file:
        for at in range(0, len(owners), _TOLD):
            told = _told(corpus, rows, owners[at : at + _TOLD])
            for n in owners[at : at + _TOLD].tolist():
                first = told[n]["captions"] or []
                both = list(dict.fromkeys([*first, *new[n]]))
                if len(both) > len(first):
                    change(n).captions[int(rows.row[n])] = both
                    found.captions[n] = len(both)
                    names = {name: told[n][name] for name in ("source", "path", "part", "shard")}
                    file.write(_line({**names, "captions": both}))


def _line(row: dict) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


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


def _counts(found: _Found, stays: np.ndarray, codes: np.ndarray) -> dict[str, int | float]:
    """What `stages.data.records.counts` says of them."""
    kinds, captions, train = found.rows.kind[stays], found.captions[stays], codes == SPLITS.index("train")
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
