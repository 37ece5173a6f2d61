"""Signatures of records, from the workers that make them to the comparison that reads them.

A worker writes the signatures of a shard's records into one file, in the order of its rows. `Signatures` are those of
one table (what is compared with each other) of all shards: the bytes lie in a temporary file that is mapped, what is
known of their records in arrays, 25 bytes a signature.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omniloom.infra import storage
from omniloom.stages.data import records

HELD = np.array([{"test": 0, "validation": 1, "train": 2}[split] for split in records.SPLITS])
_TEST = records.SPLITS.index("test")
_FACTS = ("row", "part", "split", "worth")
_SCHEMA = pa.schema(
    [
        ("table", pa.string()),
        ("row", pa.int32()),  # of the shard
        ("part", pa.int32()),  # which of the record's signatures
        ("split", pa.int8()),  # of records.SPLITS
        ("worth", pa.int64()),  # pixels, or characters
        ("signature", pa.binary()),
    ]
)


class Outside(NamedTuple):
    """A signature of something that is no record of the corpus: `key` is its (source, path, part)."""

    table: str
    key: records.Key
    signature: bytes


def write(uri: str, rows: list[tuple]) -> None:
    """`rows`: values of the schema above, in order."""
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    table = pa.Table.from_arrays([pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=["table"])
    storage.write_bytes(uri, sink.getvalue())


def worth(row: dict) -> int:
    """By which of two copies the better one is told: pixels, or characters."""
    if row["kind"] in ("image", "video"):
        return row["width"] * row["height"] * (row["frames"] or 1)
    return len(row["text"] or "") + sum(len(s["text"] or "") for s in row["segments"] or ())


class Signatures:
    """The signatures of one table. `uris` are the files of the shards, `shards` the records that they are of, both in
    order; those of `outside` follow, of shard -1. `file` is a temporary one that lives as long as the object."""

    def __init__(self, table: str, uris: Sequence[str], shards: Sequence[str], file: Any, outside: Sequence = ()):
        self.shards, self.outside = shards, [one for one in outside if one.table == table]
        found: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int32)] for name in ("shard", *_FACTS)}
        width = 0
        for number, uri in enumerate(uris):
            for batch in pq.ParquetFile(io.BytesIO(storage.read_bytes(uri))).iter_batches(batch_size=4096):
                batch = batch.filter(pc.equal(batch.column("table"), table))
                for name in _FACTS:
                    found[name].append(batch.column(name).to_numpy())
                found["shard"].append(np.full(len(batch), number, np.int32))
                for signature in batch.column("signature").to_pylist():
                    width = len(signature)
                    file.write(signature)
        for one in self.outside:
            width = len(one.signature)
            file.write(one.signature)
        file.flush()
        count = len(self.outside)
        more = {"shard": np.full(count, -1), "row": np.arange(count), "split": np.full(count, _TEST)}
        none = np.zeros(count, np.int64)
        self.shard, self.row, self.part, self.split, self.worth = (
            np.concatenate([*found[name], more.get(name, none)]) for name in ("shard", *_FACTS)
        )
        shape = (len(self.row), width)
        self.bytes = np.memmap(file, np.uint8, "r", shape=shape) if all(shape) else np.empty(shape, np.uint8)

    def __len__(self) -> int:
        return len(self.row)

    def as_type(self, kind: Any, width: int) -> np.ndarray:
        """The signatures as (n, width) of another type."""
        return np.ascontiguousarray(self.bytes).view(kind) if len(self) else np.empty((0, width), kind)

    def preference(self) -> np.ndarray:
        """The signatures, best first: what is held out before what is trained on, what is worth more, what comes first.
        So of copies the one stays that lies in the most held-out split."""
        return np.lexsort((np.arange(len(self)), -self.worth, HELD[self.split]))

    def texts(self, rows: np.ndarray) -> Iterator[tuple[int, str]]:
        """(row of the signatures, its text or caption) of `rows`, sorted; reads the shards that hold some."""
        from omniloom.stages.curate.item import Item

        names = ("kind", "text", "segments.type", "segments.text", "captions")
        for number in np.unique(self.shard[rows]).tolist():
            wanted: dict[int, list[int]] = {}
            for at in rows[self.shard[rows] == number].tolist():
                wanted.setdefault(int(self.row[at]), []).append(at)
            for position, row in enumerate(records.iterate_shard(self.shards[number], columns=names, batch_size=256)):
                for at in wanted.get(position, ()):
                    captions = row["captions"] or ()
                    yield at, captions[self.part[at]] if captions else Item(row).text


def first_of_each(pairs: np.ndarray, preference: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs int64 (n, 2) that are alike: (those that go, the one that each is like and that stays).

    In the order of `preference` each that has not gone yet stays, and those that it is in a pair with go: what goes is
    like one that stays, not like one that has gone itself. `gone`, bool, is brought up to date.
    """
    rank = np.empty(len(preference), np.int64)
    rank[preference] = np.arange(len(preference))
    ranks = np.sort(rank[pairs].reshape(-1, 2), axis=1)
    leave, like = [], []
    for better, worse in ranks[np.lexsort((ranks[:, 1], ranks[:, 0]))].tolist():
        a, b = preference[better], preference[worse]
        if not gone[a] and not gone[b]:
            gone[b] = True
            leave.append(b)
            like.append(a)
    return np.array(leave, np.int64), np.array(like, np.int64)


def grouped(values: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """int64 (n,): of each row of bytes the most preferred that is equal to it."""
    if not len(values):
        return np.empty(0, np.int64)
    rows = np.ascontiguousarray(values)
    _, groups = np.unique(rows.view(f"V{rows.shape[1]}").ravel(), return_inverse=True)
    _, first = np.unique(groups[preference], return_index=True)
    return preference[first][groups]
