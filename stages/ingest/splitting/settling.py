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
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.stages.data import changes
from omniloom.stages.data.changes import Changes
from omniloom.stages.data.records import KINDS, SPLITS
from omniloom.stages.ingest.splitting import splits
from omniloom.stages.ingest.splitting.compared import Compared
from omniloom.stages.ingest.splitting.keys import Corpus

_COLUMNS = ("id", "kind", "captions", "synthetic", "multipage")


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
class _Rows:
    """Of all records in order, an array each."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, **arrays: np.ndarray) -> None:
        for name, values in arrays.items():
            self.parts.setdefault(name, []).append(values)

    def __getitem__(self, name: str) -> np.ndarray:
        parts = self.parts.get(name, [])
        if len(parts) != 1:
            self.parts[name] = parts = [np.concatenate(parts) if parts else np.empty(0, np.int64)]
        return parts[0]


def settle(corpus: Corpus, items: int, fractions: dict[str, float], earlier: Artifact | None = None) -> Settled:
    """`items`: how many there are. `earlier`: the artifact that the corpus is built on."""
    found = _read(corpus)
    stays = _first(found["high"], found["low"])
    made = {name: Changes() for name in corpus.names}
    for shard, row in zip(found["shard"][~stays].tolist(), found["row"][~stays].tolist(), strict=True):
        made[corpus.names[shard]].dropped.add(row)
    captions = found["captions"].copy()
    _write_duplicates(corpus, found, stays, made, captions)
    compared = Compared(earlier)
    codes, own, counts = splits.assign(_kept(corpus, stays), fractions, compared)
    compared.write(corpus.output)
    shards, rows = found["shard"][stays], found["row"][stays]
    for n in np.flatnonzero(codes != own).tolist():
        made[corpus.names[shards[n]]].splits[int(rows[n])] = SPLITS[codes[n]]
    for name, gone in _gone(corpus, found).items():
        made[name].dropped |= gone
    changes.write(corpus.output, {name: change for name, change in made.items() if change.rows()})
    told = _counts(found, stays, codes, captions[stays])
    records = np.bincount(found["place"], minlength=items)
    duplicates = int((~stays).sum())
    return Settled({**told, **counts}, duplicates, found["place"][stays], found["kind"][stays], records)


def _read(corpus: Corpus) -> _Rows:
    found = _Rows()
    for run in corpus.runs(_COLUMNS):
        ids = _digits(run["id"])
        found.add(
            high=ids[:, 0],
            low=ids[:, 1],
            kind=pc.index_in(run["kind"].combine_chunks(), pa.array(KINDS)).to_numpy().astype(np.uint8),
            captions=pc.fill_null(pc.list_value_length(run["captions"]), 0).to_numpy().astype(np.int32),
            synthetic=run["synthetic"].to_numpy().astype(bool),
            multipage=run["multipage"].to_numpy().astype(bool),
            place=run["place"].to_numpy(),
            shard=run["shard"].to_numpy(),
            row=run["row"].to_numpy(),
        )
    return found


def _digits(ids: pa.ChunkedArray) -> np.ndarray:
    """The first 32 of the 64 hex digits of each id, as uint64 (n, 2)."""
    texts = np.array(pc.utf8_slice_codeunits(ids, 0, 32).to_pylist(), "S32")
    digits = texts.view(np.uint8).reshape(-1, 32)
    nibbles = (digits & 15) + 9 * (digits >> 6)
    return (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).astype(np.uint8).view("<u8").reshape(-1, 2)


def _first(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """bool (n,): whether no row before has the same values."""
    order = np.lexsort((low, high))  # stable: equal ones stay in order
    again = np.zeros(len(high), bool)
    again[order[1:]] = (np.diff(high[order]) == 0) & (np.diff(low[order]) == 0)
    return ~again


def _write_duplicates(corpus: Corpus, found: _Rows, stays: np.ndarray, made: dict[str, Changes], counts) -> None:
    """`duplicates/`: every record whose content came before, and the captions of those that stay in their place."""
    copies = np.flatnonzero(~stays)
    lines, captioned = [], []
    rows = {}
    if len(copies):
        high, low = found["high"], found["low"]
        keys = {(int(high[n]), int(low[n])) for n in copies.tolist()}
        among = np.flatnonzero(np.isin(high, high[copies])).tolist()
        owners = [n for n in among if stays[n] and (int(high[n]), int(low[n])) in keys]
        rows = _told(corpus, found, [*owners, *copies.tolist()])
        new: dict[str, list[str]] = {}
        for n in copies.tolist():
            row = rows[n]
            lines.append({name: row[name] for name in ("source", "path", "part", "id", "shard")})
            new.setdefault(row["id"], []).extend(row["captions"] or ())
        for n in owners:
            row = rows[n]
            first = row["captions"] or []
            both = list(dict.fromkeys([*first, *new[row["id"]]]))
            if len(both) > len(first):
                made[row["shard"]].captions[int(found["row"][n])] = both
                counts[n] = len(both)
                captioned.append(
                    {**{name: row[name] for name in ("source", "path", "part", "shard")}, "captions": both}
                )
    for name, told in (("duplicates", lines), ("captions", captioned)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told)
        storage.write_bytes(storage.join(corpus.output, "duplicates", f"{name}.jsonl"), text.encode())


def _told(corpus: Corpus, found: _Rows, wanted: list[int]) -> dict[int, dict]:
    """Of some of the records what the lists of duplicates say, and the name of the shard."""
    from omniloom.stages.ingest.splitting import keys

    of_shards: dict[int, list[int]] = {}
    for n in wanted:
        of_shards.setdefault(int(found["shard"][n]), []).append(n)
    told: dict[int, dict] = {}
    for shard, numbers in of_shards.items():
        name = corpus.names[shard]
        table = keys.read(corpus.output, name, ["source", "path", "part", "id", "captions"])
        rows = table.take(pa.array(found["row"][numbers])).to_pylist()
        told |= {n: {**row, "shard": name} for n, row in zip(numbers, rows, strict=True)}
    return told


def _kept(corpus: Corpus, stays: np.ndarray) -> Iterator[dict]:
    """What `splits` asks for, of the records that stay."""
    at = 0
    for run in corpus.runs(splits.KEYS.names):
        mask = stays[at : at + len(run)]
        at += len(run)
        for batch in (run if mask.all() else run.filter(pa.array(mask))).to_batches(1024):
            yield from batch.to_pylist()


def _gone(corpus: Corpus, found: _Rows) -> dict[str, set[int]]:
    """Rows of shards that are of no item any more."""
    counts = np.bincount(found["shard"], minlength=len(corpus.names))
    gone = {}
    for shard, name in enumerate(corpus.names):
        total = corpus.counts.get(name, 0)
        if counts[shard] < total:
            live = found["row"][found["shard"] == shard]
            gone[name] = set(np.setdiff1d(np.arange(total), live).tolist())
    return gone


def _counts(found: _Rows, stays: np.ndarray, codes: np.ndarray, captions: np.ndarray) -> dict[str, int | float]:
    """What `stages.data.records.counts` says of them."""
    kinds, train = found["kind"][stays], codes == SPLITS.index("train")
    synthetic, pictures = int(found["synthetic"][stays].sum()), kinds <= KINDS.index("video")
    numbers: dict[str, int | float] = {
        "records": len(kinds),
        "synthetic": synthetic,
        "synthetic_fraction": synthetic / max(1, len(kinds)),
        "uncaptioned": int((captions[pictures] == 0).sum()),
        "captions": int(captions[pictures].sum()),
        "multipage": int(found["multipage"][stays].sum()),
    }
    for code, kind in enumerate(KINDS):
        numbers[f"records_{kind}"] = int((kinds == code).sum())
        numbers[f"records_train_{kind}"] = int(train[kinds == code].sum())
    return numbers | {f"records_{split}": int((codes == code).sum()) for code, split in enumerate(SPLITS)}
