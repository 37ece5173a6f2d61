"""JSON files of many objects, read as a stream: an array, an object that holds one, or objects one after another."""

from __future__ import annotations

from collections.abc import Iterator

from omniloom.stages.ingest.formats.base import Files, Format, Head, Peek, Row, Wanted, peek_rows
from omniloom.stages.ingest.formats.json_stream import objects


class JsonArray(Format):
    """`field` is the key of the array where files are one object."""

    suffixes = (".json",)

    def __init__(self, field: str | None = None):
        self.field = field

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        return self._rows(files, files.root.blocks(item["path"]))

    def peek(self, files: Files, path: str) -> Peek:
        head = Head(files.root.blocks(path))
        return peek_rows(head, self._rows(files, iter(head)))

    def _rows(self, files: Files, blocks: Iterator[bytes]) -> Iterator[Row]:
        return objects(blocks, files.max_bytes, files.encoding, self.field)
