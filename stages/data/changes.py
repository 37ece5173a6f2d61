"""Changes: what holds of records otherwise than their shards say, in one small file beside them.

    changes/records.parquet   one row a changed record, by shard and row: whether it is dropped, and its captions or its
                              split where these are others

Shards stay as they were written, and artifacts share them: which record of several with one content stays, what its
captions are, and in which split it lies follows from the whole corpus and changes as that grows. Whoever reads records
reads them through `apply`, as `stages.data.records` does.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omniloom.infra import storage
from omniloom.stages.data.arrow import read_parquet

FILE = "changes/records.parquet"
_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("dropped", pa.bool_(), nullable=False),
        pa.field("captions", pa.list_(pa.string())),  # null: as they are
        pa.field("split", pa.string()),  # null: as it is
    ]
)


@dataclass
class Changes:
    """Of the records of one shard, by their rows."""

    dropped: set[int] = field(default_factory=set)
    captions: dict[int, list[str]] = field(default_factory=dict)
    splits: dict[int, str] = field(default_factory=dict)

    def rows(self) -> list[int]:
        return sorted({*self.dropped, *self.captions, *self.splits})

    def apply(self, batch: pa.RecordBatch, at: int) -> pa.RecordBatch:
        """Rows of the shard from `at` on, of any columns, as they are now."""
        here = range(at, at + len(batch))
        firsts = {row: captions[0] for row, captions in self.captions.items() if captions}
        for name, values in (("captions", self.captions), ("caption", firsts), ("split", self.splits)):
            if name in batch.schema.names and any(row in values for row in here):
                batch = _with(batch, name, [values.get(row) for row in here])
        if any(row in self.dropped for row in here):
            batch = batch.filter(pa.array([row not in self.dropped for row in here]))
        return batch


def _with(batch: pa.RecordBatch, name: str, new: list) -> pa.RecordBatch:
    """The batch with values of one column replaced where `new` has one."""
    place = batch.schema.get_field_index(name)
    kind = batch.schema.field(place)
    values = pc.coalesce(pa.array(new, kind.type), batch.column(place))
    return batch.set_column(place, kind, values)


def write(artifact_uri: str, changes: Mapping[str, Changes]) -> None:
    """`changes` by the names of shards."""
    columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
    for shard in sorted(changes):
        found = changes[shard]
        for row in found.rows():
            columns["shard"].append(shard)
            columns["row"].append(row)
            columns["dropped"].append(row in found.dropped)
            columns["captions"].append(found.captions.get(row))
            columns["split"].append(found.splits.get(row))
    sink = io.BytesIO()
    pq.write_table(pa.table(columns, schema=_SCHEMA), sink, compression="zstd")
    storage.write_bytes(storage.join(artifact_uri, FILE), sink.getvalue())


def of_shard(uri: str) -> Changes | None:
    """Of a shard by its URI, `.../records/NAME`; None where it is as it was written."""
    artifact, _, name = uri.rpartition("/records/")
    return of_artifact(artifact).get(name) if artifact else None


def of_artifact(artifact_uri: str) -> Mapping[str, Changes]:
    """Of all shards, by their names."""
    fs, path = storage.filesystem(storage.join(artifact_uri, FILE))
    try:
        facts = fs.info(path)
    except FileNotFoundError:
        return {}
    version = tuple(str(facts.get(key)) for key in ("size", "mtime", "ino", "ETag", "LastModified", "created"))
    return _read(storage.join(artifact_uri, FILE), version)


@functools.lru_cache(maxsize=4)
def _read(uri: str, version: tuple) -> Mapping[str, Changes]:
    """`version` changes with the file, whose content is kept."""
    found: dict[str, Changes] = {}
    for row in _rows(read_parquet(uri, _SCHEMA)):
        changes = found.setdefault(row["shard"], Changes())
        if row["dropped"]:
            changes.dropped.add(row["row"])
        if row["captions"] is not None:
            changes.captions[row["row"]] = row["captions"]
        if row["split"] is not None:
            changes.splits[row["row"]] = row["split"]
    return found


def _rows(table: pa.Table) -> Iterable[dict]:
    for batch in table.to_batches(4096):
        yield from batch.to_pylist()
