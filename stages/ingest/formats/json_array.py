"""JSON files of many objects, read as a stream: an array, an object that holds one, or objects one after another."""

from __future__ import annotations

from collections.abc import Iterator

from omniloom.stages.ingest.files.suffixes import compression
from omniloom.stages.ingest.formats.base import SHORT_ROW, Files, Format, Peek, Row, Wanted, peek_rows
from omniloom.stages.ingest.formats.json_stream import objects, ranges


class JsonArray(Format):
    """`field` is the key of the array where files are one object."""

    suffixes = (".json",)

    def __init__(self, field: str | None = None):
        self.field = field

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        blocks, encoding = files.blocks(item), item.get("encoding", files.encoding)
        if "from" not in item:
            return objects(blocks, files.max_bytes, encoding, self.field)
        return objects(blocks, files.max_bytes, encoding, within=item["within"], first=item["part"])

    def cut(self, files: Files, item: dict, size: int, count: int) -> Iterator[dict]:
        """By bytes, between values. The whole file is looked through for them. A compressed file, in which no place can
        be found, is one piece."""
        if item["size"] <= min(size, count * SHORT_ROW) or compression(item["path"]):
            yield item
            return
        for piece in ranges(files.blocks(item), size, count, files.encoding, self.field):
            yield {**item, **piece, "size": piece["to"] - piece["from"]} if piece else item

    def peek(self, files: Files, path: str) -> Peek:
        return peek_rows(self, files, path)
