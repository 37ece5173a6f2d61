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
                    yield from batch_rows(batch.select(columns), number, classes)
                    number += batch.num_rows
            except Exception as error:
                yield number, Reject("invalid_table", f"rows from {number} on cannot be read: {one_line(error)}")

    def peek(self, files: Files, path: str) -> Peek:
        with SourceBytes(files, path) as file:
            return Peek(schema_names(_opened(file)[0]), True)


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
