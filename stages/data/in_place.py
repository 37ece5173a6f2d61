"""Media where they lie: of record shards on a local disk nothing is copied to be read at random.

In: a Parquet file whose column `media` is neither compressed nor by a dictionary (`stages.data.records` writes it so).
Out: where in the file each value begins and how long it is. A reader of Parquet gives pages, each of many values; but
in a plain page each value stands whole behind its length in four bytes (Parquet format, "Plain encoding", BYTE_ARRAY),
so that a walk over the lengths finds all of them, and touches little else of the file.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omniloom.stages.data import changes, records

COLUMN = "media"
_DATA_PAGE, _PLAIN = 0, 0


class NotInPlaceError(Exception):
    """The column is stored in another way than plainly."""


class MappedFile:
    """A file's bytes, mapped."""

    def __init__(self, file: Path):
        with open(file, "rb") as opened:
            self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, at: int, length: int) -> bytes:
        return self._map[at : at + length]


def locate(uri: str, file: Path, columns: list[str], kind: str, split: str) -> pa.Table:
    """The records of a kind and split in a shard, as `records.iterate_shard` has them: these columns, and of their
    media the place `at` in the file and the `length`. NotInPlaceError where the column is not plain."""
    found, changed, row = [], changes.of_shard(uri), 0
    mapped = MappedFile(file)
    with pq.ParquetFile(file) as reader:
        leaf = reader.schema_arrow.names.index(COLUMN)
        for group in range(reader.num_row_groups):
            facts = reader.metadata.row_group(group)
            batch = reader.read_row_group(group, columns=[*columns, "kind", "split"]).combine_chunks().to_batches()
            if not batch:
                continue
            held = batch[0]
            kinds = held.column("kind").to_pylist()
            has = np.array([name in ("image", "video") for name in kinds])
            places = np.full((len(held), 2), -1, np.int64)
            if kind in kinds:
                places[has] = _places(mapped, facts.column(leaf), int(has.sum()))
            for name, values in (("at", places[:, 0]), ("length", places[:, 1])):
                held = held.append_column(name, pa.array(values))
            count = len(held)
            held = changed.apply(held, row) if changed else held
            row += count
            held = held.filter(pa.compute.equal(held.column("kind"), kind))
            found.append(held.filter(pa.compute.equal(held.column("split"), split)).select([*columns, "at", "length"]))
    names = [records.SCHEMA.field(name) for name in columns] + [pa.field(n, pa.int64()) for n in ("at", "length")]
    return pa.Table.from_batches([batch.cast(pa.schema(names)) for batch in found], pa.schema(names))


def _places(mapped: MappedFile, column: pq.ColumnChunkMetaData, count: int) -> np.ndarray:
    """Where the values of a column chunk lie that has so many: int64 (count, 2), place and length."""
    if column.path_in_schema != COLUMN or column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
        raise NotInPlaceError(column.path_in_schema)
    found: list[tuple[int, int]] = []
    at, left = column.data_page_offset, column.num_values
    while left > 0:
        header = _Header(mapped, at)
        facts = header.struct()
        if facts.get(1) != _DATA_PAGE or facts[5][2] != _PLAIN or facts[2] != facts[3]:
            raise NotInPlaceError(f"a page of type {facts.get(1)}")
        at, end = header.at, header.at + facts[3]
        at += 4 + int.from_bytes(mapped.read(at, 4), "little")  # which values are null; repeated none is
        while at < end:
            length = int.from_bytes(mapped.read(at, 4), "little")
            found.append((at + 4, length))
            at += 4 + length
        if at != end:
            raise NotInPlaceError("a value that reaches over its page")
        left -= facts[5][1]
    if len(found) != count:
        raise NotInPlaceError(f"{len(found)} values of {count}")
    return np.array(found, np.int64).reshape(-1, 2)


class _Header:
    """A page's header: a struct in Thrift's compact protocol. `at` is where the next byte is."""

    def __init__(self, mapped: MappedFile, at: int):
        self._mapped, self.at = mapped, at

    def struct(self) -> dict:
        """Values by the numbers of their fields; other structs as their own."""
        found, field = {}, 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            field = field + step if step else self._signed()
            found[field] = self._value(kind)
        return found

    def _byte(self) -> int:
        self.at += 1
        return self._mapped.read(self.at - 1, 1)[0]

    def _number(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def _signed(self) -> int:
        number = self._number()
        return number >> 1 ^ -(number & 1)

    def _value(self, kind: int):
        if kind in (1, 2):  # a bool is its type
            return kind == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 8:
            length = self._number()
            self.at += length
            return None
        if kind == 12:
            return self.struct()
        raise NotInPlaceError(f"a field of type {kind} in a page's header")
