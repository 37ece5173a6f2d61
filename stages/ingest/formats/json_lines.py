"""JSON lines: an object a line."""

from __future__ import annotations

from collections.abc import Iterator

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import encoding
from omniloom.stages.ingest.formats.base import Files, Format, Head, Peek, Row, Wanted, peek_rows
from omniloom.stages.ingest.formats.json_rows import parse_row
from omniloom.stages.ingest.rejects import Reject


class JsonLines(Format):
    suffixes = (".jsonl", ".ndjson")

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        """A line's number is its row's; blank lines are none."""
        return self._rows(files, files.root.blocks(item["path"]))

    def peek(self, files: Files, path: str) -> Peek:
        head = Head(files.root.blocks(path))
        return peek_rows(head, self._rows(files, iter(head)))

    def _rows(self, files: Files, blocks: Iterator[bytes]) -> Iterator[Row]:
        limit, empty = files.max_bytes, True
        lines = encoding.lines(blocks, limit, files.encoding)
        for number, (line, line_encoding) in enumerate(lines, 1):
            if line is None:
                empty = False
                yield number, Reject("too_large", f"a line of more than {limit} bytes")
            elif line.strip():
                empty = False
                try:
                    yield number, parse_row(line, line_encoding)
                except MediaError as error:
                    yield number, Reject(error.code, error.message)
        if empty:
            raise MediaError("empty", "no line in the file")
