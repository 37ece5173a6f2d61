"""Keys: of every record what settling a corpus asks for, in a file beside each shard, so that no shard is read again.

resume/keys/NAME          Parquet, one row a record of the shard of this name, in its order
resume/rejects/NAME.jsonl {item, source, path, part, code, message} of what was read on the way to that shard's end
                          and cannot be used
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omniloom.infra import integrity, storage
from omniloom.infra.artifacts import RESUME
from omniloom.stages.data import records
from omniloom.stages.ingest.increments.in_order import Group, Order, in_order
from omniloom.stages.ingest.splitting import splits

SCHEMA = pa.schema(
    [
        *splits.KEYS,
        pa.field("item", pa.uint32(), nullable=False),  # the number in its group of the item that the record is of
        pa.field("captions", pa.list_(pa.string())),
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("multipage", pa.bool_(), nullable=False),
    ]
)
_COLUMNS = [
    f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in SCHEMA
]  # as Parquet names them
_OWN = pa.schema(
    [pa.field("place", pa.int64()), pa.field("shard", pa.uint32()), pa.field("row", pa.uint32())]
)  # of the record's item among all; of the record


def of_row(row: dict) -> dict:
    """The keys of a record's row, with the number of its item in it."""
    found = {name: row.get(name) for name in SCHEMA.names}
    captions = row.get("captions") or ([row["caption"]] if row.get("caption") else [])
    pages = row["kind"] in ("image", "video") and '"pages"' in row["meta"] and "pages" in json.loads(row["meta"])
    return {**found, "captions": captions, "multipage": pages}


def keys_uri(output: str, name: str) -> str:
    """Of the shard of this name."""
    return storage.join(output, f"{RESUME}keys", name)


def rejects_uri(output: str, name: str) -> str:
    return storage.join(output, f"{RESUME}rejects", f"{name}.jsonl")


class Keys:
    """The keys of a shard as it is filled: of rows, and of texts in tables."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[list[dict] | pa.Table] = []

    def add(self, row: dict) -> None:
        if not self._parts or isinstance(self._parts[-1], pa.Table):
            self._parts.append([])
        self._parts[-1].append(row)
        self.count += 1

    def add_table(self, table: pa.Table) -> None:
        self._parts.append(table)
        self.count += len(table)

    def without(self, refused: list[dict]) -> list[dict]:
        """Leave out the rows that these rejects are of; the rejects, with their items."""
        if not refused:
            return []
        gone = {records.key_of(reject) for reject in refused}
        items: dict[records.Key, int] = {}
        for number, part in enumerate(self._parts):
            if isinstance(part, list):
                items |= {key: row["item"] for row in part if (key := records.key_of(row)) in gone}
                self._parts[number] = [row for row in part if records.key_of(row) not in gone]
        self.count -= len(items)
        return [{**reject, "item": items[records.key_of(reject)]} for reject in refused]

    def write(self, output: str, name: str) -> dict:
        """{bytes, sha256} of what is written."""
        tables = [pa.Table.from_pylist(part, schema=SCHEMA) if isinstance(part, list) else part for part in self._parts]
        return write_table(output, name, pa.concat_tables([SCHEMA.empty_table(), *tables]))


def write_table(output: str, name: str, table: pa.Table) -> dict:
    sink = io.BytesIO()
    # Looks and sketches are of bytes at random: neither a dictionary nor compression makes them smaller.
    plain = {name: "none" for name in ("looks.list.element", "sketch")}
    packed = {name: "zstd" for name in _COLUMNS if name not in plain}
    pq.write_table(table, sink, compression={**packed, **plain}, use_dictionary=["kind", "source", "path", "group"])
    storage.write_bytes(keys_uri(output, name), sink.getvalue())
    return integrity.describe_bytes(sink.getvalue())


def read(output: str, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    return pq.read_table(io.BytesIO(storage.read_bytes(keys_uri(output, name))), columns=columns, schema=SCHEMA)


class Corpus:
    """The keys of all shards below an output."""

    def __init__(self, output: str, order: Order):
        self.output, self.order = output, order
        self.names = sorted(storage.list_files(storage.join(output, f"{RESUME}keys")))
        self.counts: dict[str, int] = {}  # records in each shard, once it has been read
        self.rejected = sorted(storage.list_files(storage.join(output, f"{RESUME}rejects")))

    def runs(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Keys in the order of the sources: `columns`, `place` of the record's item, `shard` (its place in `names`) and
        `row`."""
        of_groups = _by_group(self.names)
        asked = list(dict.fromkeys([*columns, "item"]))

        def load(group: int) -> Group[pa.Table]:
            tables = [
                self._named(read(self.output, name, asked), group, shard) for shard, name in of_groups.get(group, ())
            ]
            empty = pa.schema([*(SCHEMA.field(name) for name in asked), *_OWN]).empty_table()
            table = pa.concat_tables([empty, *tables]).combine_chunks()
            return Group(table, table["place"].to_numpy(), _take)

        yield from in_order(self.order, load)

    def _named(self, table: pa.Table, group: int, shard: int) -> pa.Table:
        self.counts[self.names[shard]] = len(table)
        own = (
            self.order.places(group, table["item"].to_numpy()),
            np.full(len(table), shard, np.uint32),
            np.arange(len(table), dtype=np.uint32),
        )
        for field, values in zip(_OWN, own, strict=True):
            table = table.append_column(field, pa.array(values, field.type))
        return table

    def rejects(self) -> Iterator[dict]:
        """Rejects in the order of the sources, with the `place` of their item."""
        of_groups = _by_group(self.rejected)

        def load(group: int) -> Group[list[dict]]:
            found = [
                json.loads(line)
                for _, name in of_groups.get(group, ())
                # Lines end with a line feed alone: a path may hold other ends.
                for line in storage.read_bytes(storage.join(self.output, f"{RESUME}rejects", name)).split(b"\n")
                if line
            ]
            places = self.order.places(group, np.array([reject["item"] for reject in found], np.uint32))
            for reject, place in zip(found, places.tolist(), strict=True):
                reject["place"] = place
            return Group(found, places, lambda rows, chosen: [rows[i] for i in chosen.tolist()])

        for run in in_order(self.order, load):
            yield from run


def _by_group(names: list[str]) -> dict[int, list[tuple[int, str]]]:
    found: dict[int, list[tuple[int, str]]] = {}
    for number, name in enumerate(names):
        found.setdefault(records.group_of(name), []).append((number, name))
    return found


def _take(table: pa.Table, rows: np.ndarray) -> pa.Table:
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return table.slice(int(rows[0]), len(rows))
    return table.take(pa.array(rows))
