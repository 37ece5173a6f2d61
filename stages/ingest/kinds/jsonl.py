"""JSON lines: each line is a record, a text or a reference to a picture or a video."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from typing import Literal

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import encoding, manifests
from omniloom.stages.ingest.kinds.base import SourceKind
from omniloom.stages.ingest.options import FORMER_FIELDS
from omniloom.stages.ingest.rejects import Reject
from omniloom.stages.ingest.row_mapping import RowMapping, RowsConfig
from omniloom.stages.ingest.suffixes import compression

_SHORT_LINE = 32  # bytes of a line that names a file, at least


class JsonlConfig(RowsConfig):
    """JSON lines, each a record. One of text_field, template, image_field and video_field says what a line is."""

    CANONICAL = FORMER_FIELDS

    kind: Literal["jsonl"]
    """JSON lines, each a record."""


class Jsonl(SourceKind):
    Config = JsonlConfig
    suffixes = (".jsonl", ".ndjson")
    one_file_one_split = False
    usual_options = {"text_field": "text"}

    @classmethod
    def makes(cls, config: JsonlConfig) -> str:
        return config.record_kind

    @property
    def names_files(self) -> bool:
        return bool(self.config.media_field)

    @cached_property
    def mapping(self) -> RowMapping:
        return RowMapping(self)

    def cut(self, item: dict, size: int, count: int) -> Iterator[dict]:
        """By bytes, at ends of lines; and by `count` lines where they name files, each of which may be large. The whole
        file is looked through for its lines' numbers. A compressed file, in which no place can be found, is one."""
        if not self.names_files:
            count = sys.maxsize
        if item["size"] <= min(size, count * _SHORT_LINE) or compression(item["path"]):
            yield item
            return
        blocks = self.root.blocks(item["path"])
        head = next(blocks, b"")
        name, _ = encoding.by_mark(head, self.config.encoding)
        if not encoding.has_lines(name):
            yield item
            return
        part = 1
        for start, stop, lines in encoding.line_ranges(chain([head], blocks), size, count):
            piece = {"from": start, "to": stop, "size": stop - start, "part": part, "rows": lines, "encoding": name}
            yield {**item, **piece}
            part += lines

    def read(self, item: dict) -> Iterator[dict | Reject]:
        """A record or a reject per line, with the line's number as its part. A file that fails half way keeps what
        came before."""
        first, empty = item.get("part", 1), True
        part = first - 1
        blocks = self.root.blocks(item["path"], item.get("from", 0), item.get("to"))
        name = item.get("encoding", self.config.encoding)
        try:
            for part, (line, line_encoding) in enumerate(encoding.lines(blocks, self.limits.max_bytes, name), first):
                if line is None or line.strip():
                    empty = False
                    yield from self._line(line, line_encoding, item["path"], part)
        except Exception as error:
            yield Reject.of(error, item["path"], part + 1 if part else 0)
            return
        if empty and "from" not in item:
            raise MediaError("empty", "no line in the file")

    def _line(self, line: bytes | None, line_encoding: str, path: str, part: int) -> Iterator[dict | Reject]:
        """The record of a line, or the reject; and a reject for each value that the record goes without."""
        try:
            if line is None:
                raise MediaError("too_large", f"a line of more than {self.limits.max_bytes} bytes")
            record, rejects = self.mapping.record(manifests.parse_row(line, line_encoding), path)
        except Exception as error:
            yield Reject.of(error, path, part)
            return
        yield {**record, "part": part}
        for problem in rejects:
            yield Reject(problem.code, problem.message, part)
