"""Token shards as files: their schema, and what writes one. In: rows as dictionaries, a document each, whose lists are
numpy arrays. Out: an Arrow file (`stages.data.tokens`), and what the index keeps of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import fields

import numpy as np
import pyarrow as pa

from omniloom.infra import storage
from omniloom.stages.data.index import Lengths, lengths_of

SCHEMA_VERSION = 5
_BATCH_ROWS, _BATCH_BYTES = 1024, 32 << 20  # of a record batch, which is held until it is written


def schema(bf16: bool = False) -> pa.Schema:
    """Of a shard; with `bf16` latents and their log-variances are the upper 16 bits of float32, which Arrow has no type
    for."""
    floats = pa.list_(pa.uint16() if bf16 else pa.float32())
    segment = pa.struct(
        [
            pa.field("kind", pa.string(), nullable=False),  # "text" or "visual"
            pa.field("ids", pa.list_(pa.int32())),
            pa.field("codes", pa.list_(pa.int32())),
            pa.field("latents", floats),
            pa.field("log_variances", floats),
            pa.field("grid", pa.list_(pa.int32())),
            pa.field("pixels", pa.list_(pa.uint8())),
            pa.field("pixel_grid", pa.list_(pa.int32())),
            pa.field("features", pa.large_list(pa.float16())),  # a shard's may be more than 2^31
            pa.field("feature_grid", pa.list_(pa.int32())),
            pa.field("loss", pa.bool_(), nullable=False),
        ]
    )
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),  # the record's kind
            pa.field("label", pa.string()),
            pa.field("source", pa.string()),  # the record's source and file, over which draws are spread
            pa.field("path", pa.string()),
            pa.field("bytes", pa.int32(), nullable=False),  # UTF-8 bytes of the text, for bits per byte
            pa.field("segments", pa.list_(segment), nullable=False),
        ],
        metadata={"omniloom.tokens": str(SCHEMA_VERSION)},
    )


SCHEMA = schema()


def to_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> the bits of the nearest bfloat16, of two as near the even one, uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    """The bits of bfloat16, uint16 -> float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


@contextlib.contextmanager
def shard_writer(uri: str, bf16: bool = False) -> Iterator[ShardWriter]:
    """What takes the rows of a shard, which is there, whole, once the block is left without an error."""
    made = schema(bf16)
    with storage.writing(uri) as file, pa.ipc.new_file(file, made) as arrow:
        writer = ShardWriter(arrow, made)
        yield writer
        writer.flush()


def write_shard(uri: str, rows: Iterable[dict], bf16: bool = False) -> Lengths:
    """A shard of these rows, and what the index keeps of them."""
    with shard_writer(uri, bf16) as writer:
        for row in rows:
            arrays = (v for segment in row["segments"] for v in segment.values() if isinstance(v, np.ndarray))
            writer.add(row, sum(v.nbytes for v in arrays))
    return writer.lengths


class ShardWriter:
    """Holds a record batch at a time, so that nobody holds a shard."""

    def __init__(self, arrow: pa.ipc.RecordBatchFileWriter, made: pa.Schema):
        self._arrow, self._schema = arrow, made
        self._rows: list[dict] = []
        self._size = 0
        self._lengths = [lengths_of(made.empty_table())]

    def add(self, row: dict, size: int) -> None:
        """A row of the schema, whose arrays have `size` bytes in all; what it lacks is null. Its segments are
        dictionaries of arrays."""
        self._rows.append(row)
        self._size += size
        if len(self._rows) >= _BATCH_ROWS or self._size >= _BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        rows, self._rows, self._size = self._rows, [], 0
        if rows:
            batch = _batch(rows, self._schema)
            self._arrow.write_batch(batch)
            self._lengths.append(lengths_of(pa.Table.from_batches([batch])))

    @property
    def lengths(self) -> Lengths:
        """Of what was written, in its order."""
        parts = ([getattr(part, f.name) for part in self._lengths] for f in fields(Lengths))
        return Lengths(*map(np.concatenate, parts))


def _batch(rows: list[dict], made: pa.Schema) -> pa.RecordBatch:
    segments = [segment for row in rows for segment in row["segments"]]
    listed = made.field("segments").type
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in made if f.name != "segments"]
    named = set().union(*segments)
    parts = [
        _column([segment.get(f.name) for segment in segments], f.type)
        if f.name in named
        else _absent(len(segments), f.type)
        for f in listed.value_type
    ]
    held = pa.StructArray.from_arrays(parts, fields=list(listed.value_type))
    offsets = _offsets([len(row["segments"]) for row in rows], np.int32)
    return pa.record_batch([*columns, pa.ListArray.from_arrays(offsets, held, type=listed)], schema=made)


def _column(values: list, kind: pa.DataType) -> pa.Array:
    """A value of each segment: lists from their buffers, never by Python objects."""
    large = pa.types.is_large_list(kind)
    if not (large or pa.types.is_list(kind)):
        return pa.array(values, kind)
    dtype = kind.value_type.to_pandas_dtype()
    arrays = [_numbers(value, dtype) for value in values if value is not None]
    offsets = _offsets([0 if value is None else len(value) for value in values], np.int64 if large else np.int32)
    numbers = pa.array(np.concatenate(arrays) if arrays else np.empty(0, dtype), kind.value_type)
    missing = pa.array([value is None for value in values], pa.bool_())
    return (pa.LargeListArray if large else pa.ListArray).from_arrays(offsets, numbers, type=kind, mask=missing)


def _absent(count: int, kind: pa.DataType) -> pa.Array:
    """`_column` of nothing but None."""
    large = pa.types.is_large_list(kind)
    if not (large or pa.types.is_list(kind)):
        return pa.nulls(count, kind)
    offsets, missing = np.zeros(count + 1, np.int64 if large else np.int32), pa.array(np.ones(count, bool))
    held = pa.array(np.empty(0, kind.value_type.to_pandas_dtype()), kind.value_type)
    return (pa.LargeListArray if large else pa.ListArray).from_arrays(pa.array(offsets), held, type=kind, mask=missing)


def _numbers(value, dtype) -> np.ndarray:
    given = np.asarray(value)
    return to_bf16(given) if dtype == np.uint16 and given.dtype != np.uint16 else given.astype(dtype, copy=False)


def _offsets(counts: list[int], dtype: type) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(dtype))
