"""Arrow files, as `Dataset.save_to_disk` of the `datasets` library writes: a stream of batches of rows, or a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from omniloom.stages.data.media.limits import MediaError, one_line
from omniloom.stages.ingest.formats.base import Files, Format, Peek, Row, SourceBytes, Wanted
from omniloom.stages.ingest.formats.parquet import batch_rows, class_names, schema_names
from omniloom.stages.ingest.rejects import Reject

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"ARROW1"  # at both ends of a file; a stream has none


class Arrow(Format):
    suffixes = (".arrow", ".feather")

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        with SourceBytes(files, item["path"]) as file:
            schema, batches = _opened(file)
            columns, classes, number = wanted(schema.names), class_names(schema), 1
            try:
                for batch in batches:
                    yield from _checked(batch.select(columns), number, classes)
                    number += batch.num_rows
            except Exception as error:
                yield number, Reject("invalid_table", f"rows from {number} on cannot be read: {one_line(error)}")

    def peek(self, files: Files, path: str) -> Peek:
        with SourceBytes(files, path) as file:
            return Peek(schema_names(_opened(file)[0]), True)


def _checked(batch: pa.RecordBatch, number: int, classes: dict[str, list[str]]) -> Iterator[Row]:
    """The rows of a batch whose places in memory were looked at first: Arrow trusts them, and a damaged one would end
    the process."""
    import pyarrow as pa

    try:
        batch.validate(full=True)
        yield from batch_rows(batch, number, classes)
        return
    except pa.ArrowInvalid:
        pass
    for at in range(batch.num_rows):
        row = batch.slice(at, 1)
        try:
            row.validate(full=True)
        except pa.ArrowInvalid as error:
            code = "invalid_utf8" if "UTF8" in str(error) else "invalid_table"
            yield number + at, Reject(code, one_line(error))
        else:
            yield from batch_rows(row, number + at, classes)


def _opened(file: SourceBytes) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    import pyarrow as pa

    is_file = file.read(len(_MAGIC)) == _MAGIC
    file.seek(0)
    try:
        if not is_file:
            stream = pa.ipc.open_stream(file)
            return stream.schema, iter(stream)
        reader = pa.ipc.open_file(file)
        return reader.schema, map(reader.get_batch, range(reader.num_record_batches))
    except (pa.ArrowException, ValueError, OSError) as error:
        raise MediaError("invalid_table", f"no Arrow file: {one_line(error)}") from None
