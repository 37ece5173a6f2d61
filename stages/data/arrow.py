"""Tables of files.

map_table      an Arrow file on this machine's disk, memory-mapped: zero-copy, batch by batch as it lies there.
               InputError naming the file where it is none, or is cut
read_parquet   a Parquet file in any storage, whole
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from omniloom.infra import storage
from omniloom.infra.errors import InputError


def map_table(file: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"cannot be read as an Arrow file ({file.stat().st_size if file.exists() else 'no'} bytes): "
            f"{error}; `omniloom verify CONFIG` tells which stage to make again",
            file=str(file),
        ) from None


def read_parquet(uri: str, schema: pa.Schema | None = None) -> pa.Table:
    """`schema`: the columns to give, as these types; what the file does not have is null. Raises Arrow's own errors.

    By this thread alone. `pyarrow.parquet.read_table` leaves work to Arrow's own threads that may still hold the bytes,
    which are Python's, when it returns; of a command that ends just then they abort the process (exit code 134).
    """
    with pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri))) as reader:
        columns = schema and [name for name in reader.schema_arrow.names if name in schema.names]
        table = reader.read(columns, use_threads=False)
    if schema is None:
        return table
    held = [table[f.name] if f.name in table.column_names else pa.nulls(len(table), f.type) for f in schema]
    return pa.table(held, names=schema.names).cast(schema)
