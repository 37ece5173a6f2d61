"""Parquet: rows in groups, of which the columns that are wanted are read, batch by batch."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote

from omniloom.stages.data.media.limits import MediaError, one_line
from omniloom.stages.ingest.formats.base import SHORT_ROW, Files, Format, Peek, Row, SourceBytes, Wanted
from omniloom.stages.ingest.rejects import Reject

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 1024
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


class Parquet(Format):
    suffixes = (".parquet", ".pq")

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        """The rows of the file, or those from number "from" to "to", both counted from 0 and the last not included. A
        row group that cannot be read is one reject."""
        with SourceBytes(files, item["path"]) as file:
            parquet = opened(file)
            first, last = item.get("from", 0), item.get("to", parquet.metadata.num_rows)
            names, folders = parquet.schema_arrow.names, partitions(item["path"])
            chosen = wanted([*names, *(name for name in folders if name not in names)])
            columns = [name for name in chosen if name in names]
            folders = {name: folders[name] for name in chosen if name not in names}
            classes = class_names(parquet.schema_arrow)
            for group, (start, stop) in enumerate(pairwise(_starts(parquet.metadata))):
                if start < last and stop > first:
                    for number, row in _group(parquet, group, columns, start + 1, classes):
                        if first < number <= last:
                            yield number, row if isinstance(row, Reject) else row | folders

    def cut(self, files: Files, item: dict, size: int, count: int) -> Iterator[dict]:
        """Between row groups, and within those of more than `count` rows."""
        if item["size"] <= min(size, count * SHORT_ROW):
            yield item
            return
        with SourceBytes(files, item["path"]) as file:
            metadata = opened(file).metadata
        start = held = 0
        for group, (first, stop) in enumerate(pairwise(_starts(metadata))):
            each = metadata.row_group(group).total_byte_size / max(1, stop - first)
            at = first
            while at < stop:
                step = min(stop - at, count - (at - start))
                at, held = at + step, held + step * each
                if held >= size or at - start >= count or at == metadata.num_rows:
                    yield {**item, "from": start, "to": at, "size": int(held), "part": start + 1, "rows": at - start}
                    start, held = at, 0

    def peek(self, files: Files, path: str) -> Peek:
        with SourceBytes(files, path) as file:
            names = schema_names(opened(file).schema_arrow)
        return Peek(list(dict.fromkeys([*names, *partitions(path)])), True)


def all_rows(data: bytes) -> Iterator[Row]:
    """Every row of a small file."""
    parquet = opened(io.BytesIO(data))
    number = 1
    for batch in parquet.iter_batches(_BATCH_ROWS, use_threads=False):
        yield from batch_rows(batch, number, class_names(parquet.schema_arrow))
        number += batch.num_rows


def opened(file: IO[bytes] | io.RawIOBase) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, ValueError, NotImplementedError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the filesystem; what cannot be parsed has no number
            raise
        raise MediaError("invalid_table", f"no Parquet file: {one_line(error)}") from None


def partitions(path: str) -> dict[str, str]:
    """The columns that folders stand for: {"label": "cat"} of label=cat/0.parquet."""
    pairs = (folder.partition("=") for folder in path.split("/")[:-1])
    return {name: unquote(value) for name, found, value in pairs if found and name and value != _NO_VALUE}


def _starts(metadata: pq.FileMetaData) -> list[int]:
    """How many rows come before each row group."""
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return starts


def _group(parquet: pq.ParquetFile, group: int, columns: list[str], number: int, classes: dict) -> Iterator[Row]:
    facts = parquet.metadata.row_group(group)
    each = max(1, facts.total_byte_size // max(1, facts.num_rows))
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // each))
    last = number + facts.num_rows - 1
    if not columns:  # a row without any of them is told as such
        yield from ((at, {}) for at in range(number, last + 1))
        return
    try:
        for batch in parquet.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
            yield from batch_rows(batch, number, classes)
            number += batch.num_rows
    except Exception as error:  # each codec and encoding has its own for what is damaged
        yield number, Reject("invalid_table", f"rows {number} to {last} cannot be read: {one_line(error)}")


def batch_rows(batch: pa.RecordBatch, number: int, classes: dict[str, list[str]]) -> Iterator[Row]:
    """The rows of a batch, the first of which is the one of this number in its file. Numbers of classes become their
    names."""
    for at in range(batch.num_rows):
        try:
            row = {name: column[at].as_py() for name, column in zip(batch.schema.names, batch.columns)}
        except Exception as error:  # a value that Python has no equal for
            code = "invalid_utf8" if isinstance(error, UnicodeError) else "invalid_table"
            yield number + at, Reject(code, one_line(error))
            continue
        for name, names in classes.items():
            if name in row:
                row[name] = _class(row[name], names)
        yield number + at, row


def _class(value: Any, names: list[str]) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None if value == -1 else value


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> names of its classes, as the `datasets` library keeps them in a schema's metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        found = {name: feature.get("names") for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if isinstance(names, list) and all(isinstance(name, str) for name in names)
    }


def schema_names(schema: pa.Schema) -> list[str]:
    """The names of columns, and of fields within them, with a dot between."""
    names: list[str] = []
    for field in schema:
        names += _names(field.type, field.name, 3)
    return names


def _names(type_: pa.DataType, name: str, depth: int) -> list[str]:
    import pyarrow.types as types

    while types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        type_ = type_.value_type
    names = [name]
    if types.is_struct(type_) and depth > 1:
        for index in range(type_.num_fields):
            inner = type_.field(index)
            names += _names(inner.type, f"{name}.{inner.name}", depth - 1)
    return names
