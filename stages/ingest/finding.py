"""What an artifact of records says of a file: its records, its rejects, and the records that it is a copy of.

In: the artifact's URI, and the names that the file may have there. Columns of names alone are read, and of those what
Parquet's statistics do not exclude.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from omniloom.infra import storage
from omniloom.stages.data import records

_COLUMNS = ["source", "path", "part", "id", "kind", "split"]
_READERS = 16


@dataclass(frozen=True)
class FileName:
    """A path as records have it, in the source of this name; None is any."""

    source: str | None
    path: str

    def is_of(self, row: dict[str, Any]) -> bool:
        return row["path"] == self.path and self.source in (None, row["source"])


@dataclass
class Found:
    """Rows as the artifact has them: "source", "path" and "part" of each, "id", "kind" and "split" of records, "code"
    and "message" of rejects, "id" of copies, whose content is the record of that id."""

    records: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    copies: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.records or self.rejects or self.copies)


def find(artifact: str, names: Sequence[FileName]) -> Found:
    """What an artifact of records says of the file that has one of these names there."""

    def chosen(rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if any(name.is_of(row) for name in names)]

    with ThreadPoolExecutor(_READERS) as pool:
        paths = {name.path for name in names}
        tables = pool.map(lambda uri: _rows(uri, paths), records.shards(artifact))
        found = chosen([row for table in tables for row in table])
    lines = {name: _lines(storage.join(artifact, name), names) for name in ("rejects/rejects.jsonl", _COPIES)}
    rejects = [row | {"path": row.get("path") or ""} for row in lines["rejects/rejects.jsonl"]]
    return Found(found, chosen(rejects), chosen(lines[_COPIES]))


_COPIES = "duplicates/duplicates.jsonl"


def _rows(uri: str, paths: Set[str]) -> list[dict[str, Any]]:
    if not _holds(uri, paths):
        return []
    return [row for row in records.iterate_shard(uri, columns=_COLUMNS, batch_size=4096) if row["path"] in paths]


def _holds(uri: str, paths: Set[str]) -> bool:
    """Whether a shard holds records of any of the paths."""
    fs, path = storage.filesystem(uri)
    wanted = pa.array(paths, pa.string())
    with fs.open(path, "rb") as file, pq.ParquetFile(file) as reader:
        groups = range(reader.num_row_groups)
        may = [group for group in groups if records.may_hold(reader.metadata.row_group(group), "path", paths)]
        return any(
            pc.any(pc.is_in(reader.read_row_group(group, ["path"], use_threads=False)["path"], wanted)).as_py()
            for group in may
        )


def _lines(uri: str, names: Sequence[FileName]) -> Iterator[dict[str, Any]]:
    """The rows of JSON lines that hold one of the paths."""
    if not storage.exists(uri):
        return
    wanted = [json.dumps(name.path, ensure_ascii=False).encode() for name in names]
    fs, path = storage.filesystem(uri)
    with fs.open(path, "rb") as file:
        yield from (json.loads(line) for line in file if any(text in line for text in wanted))
