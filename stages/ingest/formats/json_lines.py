"""JSON lines: an object a line."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.files.suffixes import compression
from omniloom.stages.ingest.formats.base import SHORT_ROW, Files, Format, Peek, Row, Wanted, peek_rows
from omniloom.stages.ingest.formats.json_rows import parse_row
from omniloom.stages.ingest.rejects import Reject


class JsonLines(Format):
    suffixes = (".jsonl", ".ndjson")

    def cut(self, files: Files, item: dict, size: int, count: int) -> Iterator[dict]:
        """By bytes, at ends of lines. The whole file is looked through for its lines' numbers, and a piece tells by its
        "digest" whether it is as it was, however the file has grown. A compressed file, in which no place can be found,
        is one piece."""
        if item["size"] <= min(size, count * SHORT_ROW) or compression(item["path"]):
            yield item
            return
        blocks = files.blocks(item)
        head = next(blocks, b"")
        name, _ = encoding.by_mark(head, files.encoding)
        if not encoding.has_lines(name):
            yield item
            return
        part = 1
        for start, stop, lines, digest in encoding.line_ranges(chain([head], blocks), size, count):
            piece = {"from": start, "to": stop, "size": stop - start, "part": part, "rows": lines, "encoding": name}
            yield {**item, **piece, "digest": digest}
            part += lines

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        """A line's number is its row's; blank lines are none."""
        limit, empty = files.max_bytes, True
        lines = encoding.lines(files.blocks(item), limit, item.get("encoding", files.encoding))
        for number, (line, line_encoding) in enumerate(lines, item.get("part", 1)):
            if line is None:
                empty = False
                yield number, Reject("too_large", f"a line of more than {limit} bytes")
            elif line and not line.isspace():
                empty = False
                try:
                    yield number, parse_row(line, line_encoding)
                except MediaError as error:
                    yield number, Reject(error.code, error.message)
        if empty and "from" not in item:
            raise MediaError("empty", "no line in the file")

    def peek(self, files: Files, path: str) -> Peek:
        return peek_rows(self, files, path)
