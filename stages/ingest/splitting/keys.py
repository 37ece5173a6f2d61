"""Keys: of every record what settling a corpus asks for, in a file beside each shard, so that no shard is read again.

resume/keys/NAME          Parquet, one row a record of the shard of this name, in its order
resume/rejects/NAME.jsonl {item, source, path, part, code, message} of what was read on the way to that shard's end
                          and cannot be used
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omniloom.infra import integrity, storage
from omniloom.infra.artifacts import RESUME
from omniloom.stages.data import records
from omniloom.stages.ingest.increments.in_order import Group, Order, in_order
from omniloom.stages.ingest.splitting.columns import fixed, whole

SCHEMA = pa.schema(
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
        pa.field("sketched", pa.bool_(), nullable=False),  # whether there is a sketch
        pa.field("item", pa.uint32(), nullable=False),  # the number in its group of the item that the record is of
        pa.field("captions", pa.list_(pa.string())),
        pa.field("captioned", pa.uint32(), nullable=False),  # how many captions there are
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("multipage", pa.bool_(), nullable=False),
    ]
)
_COLUMNS = [
    f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in SCHEMA
]  # as Parquet names them
_HELD = 3  # columns of shards


def of_row(row: dict) -> dict:
    """The keys of a record's row, with the number of its item in it."""
    found = {name: row.get(name) for name in SCHEMA.names}
    captions = row.get("captions") or ([row["caption"]] if row.get("caption") else [])
    pages = row["kind"] in ("image", "video") and '"pages"' in row["meta"] and "pages" in json.loads(row["meta"])
    counts = {"captioned": len(captions), "sketched": row.get("sketch") is not None}
    return {**found, **counts, "captions": captions, "multipage": pages}


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
    """On a local disk no more of the file is read than these columns."""
    uri = keys_uri(output, name)
    with (
        pa.memory_map(str(path)) if (path := storage.local_path(uri)) else pa.BufferReader(storage.read_bytes(uri))
    ) as file:
        return pq.ParquetFile(file).read(columns).select(columns or SCHEMA.names)


class Corpus:
    """The keys of all shards below an output."""

    def __init__(self, output: str, order: Order):
        self.output, self.order = output, order
        self.names = sorted(storage.list_files(storage.join(output, f"{RESUME}keys")))
        self.rejected = sorted(storage.list_files(storage.join(output, f"{RESUME}rejects")))
        self._columns: dict[tuple[str, int], Future[tuple[pa.Array, np.ndarray]]] = {}
        self._lock = threading.Lock()

    def table(self, shard: int, columns: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
        """The keys of a shard by its number in `names`, and of each of them the place of its item, -1 where that is
        none of the run."""
        name = self.names[shard]
        table = read(self.output, name, [*columns, "item"])
        return table, self.order.places(records.group_of(name), table["item"].to_numpy())

    def values(self, column: str, shard: int, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Of looks or sketches in a shard those of these rows, of each the one at a place in it: uint8 (n, width). Any
        thread may ask."""
        held, starts = self._column(column, shard)
        return fixed(held.take(pa.array(starts[rows] + places)))

    def _column(self, column: str, shard: int) -> tuple[pa.Array, np.ndarray]:
        """All values, and where those of each row begin. The last few are asked for again, by several threads."""
        with self._lock:
            held = self._columns.pop((column, shard), None)
            loads = held is None
            self._columns[column, shard] = held = held or Future()
            if len(self._columns) > _HELD:
                del self._columns[next(iter(self._columns))]
        if loads:
            try:
                held.set_result(self._load(column, shard))
            except BaseException as error:
                held.set_exception(error)
        return held.result()

    def _load(self, column: str, shard: int) -> tuple[pa.Array, np.ndarray]:
        values = whole(read(self.output, self.names[shard], [column])[column])
        if pa.types.is_list(values.type):
            starts, values = values.offsets.to_numpy().astype(np.int64), values.flatten()
        else:
            starts = np.cumsum(values.is_valid().to_numpy(zero_copy_only=False)) - 1
        return values.drop_null(), starts

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
