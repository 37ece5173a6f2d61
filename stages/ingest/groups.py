"""Groups: items in order, as a worker takes them, and the shards that it makes of them.

A group is {"index", "items"}: items or pieces of items (`SourceKind.cut`) of about a shard in all, as far as it is
known what they take of one (`weighing`, `cutting`). A worker reads them
one after another and closes a shard where the next row would bring its file far above `shard_bytes`, by what rows have
taken so far, or it has `shard_items`. So a group gives a shard, or several where its files hold more than their own
bytes (lines that name pictures) or many records; no shard holds rows of two groups. Nothing is held of a shard but a
row group.

Shards of group 12 are records/shard-000012-0000.parquet, -0001, ... and beside each lie its keys and rejects
(`stages.ingest.splitting.keys`); in the stage's state groups/000012.json, written last: the reports on the group's
shards. A group without it is read again from its beginning and gives the same shards, so a kill leaves nothing behind
that is not written over.
"""

from __future__ import annotations

import json
import marshal
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, cast

from omniloom.infra import integrity, storage
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.text_runs import AT_ONCE, Columns, TextRun
from omniloom.stages.ingest.weighing import weighed

if TYPE_CHECKING:
    from omniloom.stages.data.records import ShardWriter
    from omniloom.stages.ingest.splitting.keys import Keys

_REJECTS = 65536  # that a worker holds
_PLAIN = 2  # of marshal: equal values are written alike, whoever else holds them
_OVER = 1.15  # times `shard_bytes` at most, so that a piece which holds a little more than was expected is one shard


def grouped(items: Iterable[dict], config: Config, index: int = 0) -> Iterator[dict]:
    """Items in order, cut where a group would come to more than `shard_items` or `shard_bytes`. `index` is the number
    of the first group."""
    group: list[dict] = []
    size = count = 0
    for item in weighed(items, config):
        rows, held = item.get("rows", 1), item.get("held", item["size"])
        if group and (count + rows > config.shard_items or size + held > config.shard_bytes):
            yield {"index": index, "items": group}
            index, group, size, count = index + 1, [], 0, 0
        group.append(item)
        size, count = size + held, count + rows
    if group:
        yield {"index": index, "items": group}


def done(state: str, group: dict) -> list[dict] | None:
    """The reports of a group of these items that an earlier run has done."""
    found = storage.read_json(_marker(state, group))
    return found["shards"] if found and found["items"] == _digest(group) else None


def _digest(group: dict) -> str:
    return blake2b(marshal.dumps(group["items"], _PLAIN)).hexdigest()


def ingest_group(group: dict, config: Config, output: str, state: str) -> Iterator[dict]:
    """Read one group's items and write its shards; a group that is done already is not read again.

    A report for each: {"name": of the shard, "records", "files", "asked", "written"}: of the items that were read to
    their ends how many files begin with them, and [item, source, paths] where reading one asked for other files; and by
    path the {bytes, sha256} of what was written.
    """
    if (reports := done(state, group)) is not None:
        yield from reports
        return
    reading, reports = _Reading(group, config), []
    while reading.left or not reports:
        reports.append(reading.shard(output, state, len(reports)))
        yield reports[-1]
    storage.write_json(_marker(state, group), {"shards": reports, "items": _digest(group)})


class _Reading:
    """Rows, runs of texts and rejects of a group, taken shard by shard."""

    def __init__(self, group: dict, config: Config):
        self._group, self._config = group, config
        self._files = 0
        self._asked: list[list] = []
        self._rows = self._read()
        self._row: dict | TextRun = next(self._rows, {})  # what is to be taken next; empty at the end

    @property
    def left(self) -> bool:
        return bool(self._row)

    @property
    def _is_reject(self) -> bool:
        return isinstance(self._row, dict) and "code" in self._row

    def _read(self) -> Iterator[dict | TextRun]:
        """Rows with their source and split, runs of texts, and rejects, which have a `code`."""
        from omniloom.stages.ingest.readers import Reader
        from omniloom.stages.ingest.splitting import splits

        fractions = self._config.splits.model_dump()
        readers: dict[int, tuple[Reader, str]] = {}
        for number, item in enumerate(self._group["items"]):
            index = item["source"]
            if index not in readers:
                readers[index] = Reader(self._config, index), self._config.source_name(index)
            reader, source = readers[index]
            for row in reader.entries(item):
                if isinstance(row, TextRun):
                    row.source, row.item = source, number
                    yield row
                    continue
                row |= {"source": source, "item": number}
                if "code" not in row:
                    row["split"] = splits.own_split(row, fractions)
                yield row
            self._files += not item.get("from")
            if asked := reader.asked(item):
                self._asked.append([number, index, asked])

    def shard(self, output: str, state: str, number: int) -> dict:
        """Write the next shard with what belongs to it; the report on it."""
        from omniloom.stages.data import records
        from omniloom.stages.ingest.splitting import keys

        path = records.shard_name(self._group["index"], number)
        name = path.rpartition("/")[2]
        rejects = self._refused([])
        found = keys.Keys()
        written: dict[str, dict] = {}
        if self.left and not self._is_reject:
            with records.shard_writer(storage.join(output, path)) as writer:
                self._fill(writer, found, rejects)
            rejects += found.without(writer.refused)
            written = {path: writer.facts, keys.keys_uri("", name): found.write(output, name)}
        lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects).encode()
        storage.write_bytes(keys.rejects_uri(output, name), lines)
        written[keys.rejects_uri("", name)] = integrity.describe_bytes(lines)
        counts = {"records": found.count, "files": self._files}
        report = {"name": name, **counts, "asked": self._asked, "written": written}
        self._files, self._asked = 0, []
        return report

    def _refused(self, rejects: list[dict]) -> list[dict]:
        """Take rejects up to the next row; no more than are to be held at once."""
        while self._is_reject and len(rejects) < _REJECTS:
            rejects.append(cast(dict, self._row))
            self._row = next(self._rows, {})
        return rejects

    def _fill(self, writer: ShardWriter, found: Keys, rejects: list[dict]) -> None:
        """Write what the shard holds, in order; texts that follow one another together."""
        from omniloom.stages.ingest.splitting import keys

        columns = Columns(self._config.splits.model_dump())

        def close() -> None:
            if columns.size:
                size, (table, of_table) = columns.size, columns.tables()
                writer.add_table(table, size)
                found.add_table(of_table)

        for row in self._held(writer, rejects):
            if isinstance(row, TextRun):
                columns.add(row)
                if columns.size >= AT_ONCE:
                    close()
            else:
                close()
                writer.add(row)
                found.add(keys.of_row(row))
        close()

    def _held(self, writer: ShardWriter, rejects: list[dict]) -> Iterator[dict | TextRun]:
        """Take what a shard holds, the rejects between apart."""
        from omniloom.stages.data.records import row_bytes

        expected = max(item.get("packed", 1.0) for item in self._group["items"])
        most, largest = self._config.shard_items, self._config.shard_bytes
        size = count = 0
        while self.left and not self._is_reject and count < most:
            limit = int(_OVER * largest / writer.packed(expected))
            row, rest = self._row, None
            if isinstance(row, TextRun):
                row, rest = row.cut(most - count, limit - size, not count)
                rows, held = len(row.texts), row.size
            else:
                rows, held = 1, row_bytes(row)
            if not rows or (count and size + held > limit):
                return
            count, size = count + rows, size + held
            yield row
            self._row = rest or next(self._rows, {})
            self._refused(rejects)


def marker_name(group: dict) -> str:
    return f"{group['index']:06d}.json"


def _marker(state: str, group: dict) -> str:
    return storage.join(state, "groups", marker_name(group))
