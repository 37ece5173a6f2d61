"""Tables as text: cells parted by a comma, a semicolon, a tab or a bar; the first line names the columns."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import encoding as encodings
from omniloom.stages.ingest.files.paths import encodable
from omniloom.stages.ingest.files.suffixes import compression, suffix
from omniloom.stages.ingest.formats.base import SHORT_ROW, Files, Format, Peek, Row, Wanted
from omniloom.stages.ingest.rejects import Reject

DELIMITERS = {".csv": ",;\t|", ".tsv": "\t", ".tab": "\t"}


class Delimited(Format):
    """`columns` are the names where the files have no line of them."""

    suffixes = tuple(DELIMITERS)

    def __init__(self, columns: Sequence[str] = ()):
        self.columns = list(columns)

    def rows(self, files: Files, item: dict, wanted: Wanted) -> Iterator[Row]:
        """The number of a row is that of the line that it begins in."""
        lines = Lines(files.blocks(item), item.get("encoding", files.encoding), files.max_bytes)
        delimiters = item.get("delimiter", _delimiters(item["path"]))
        empty = "from" not in item
        for row in table(lines, delimiters, item.get("columns", self.columns), item.get("part", 1)):
            empty = False
            yield row
        if empty:
            raise MediaError("empty", "no row in the table")

    def peek(self, files: Files, path: str) -> Peek:
        lines = Lines(files.blocks({"path": path}), files.encoding, files.max_bytes)
        names = self.columns or next(_reader(lines, _delimiters(path)), [])
        return Peek([name.strip() for name in names if name.strip()], True)

    def cut(self, files: Files, item: dict, size: int, count: int) -> Iterator[dict]:
        """By bytes, where a row begins. The whole file is looked through, for a quoted cell may hold ends of lines. A
        compressed file, in which no place can be found, is one piece."""
        if item["size"] <= min(size, count * SHORT_ROW) or compression(item["path"]):
            yield item
            return
        marked = _MarkedLines(files.blocks(item), files.encoding, files.max_bytes)
        if not encodings.has_lines(marked.encoding):
            yield item
            return
        known = {"columns": self.columns, "encoding": marked.encoding}
        reader = _reader(marked, _delimiters(item["path"]))
        start, part, rows = 0, 1, 0
        for cells in _readable(reader):
            if not known["columns"]:
                known["columns"] = [cell.strip() for cell in cells]
                start, part = marked.end, reader.line_num + 1
                continue
            rows += 1
            if marked.end - start >= size or rows >= count:
                yield _piece(item, known, reader, start, marked.end, part, rows)
                start, part, rows = marked.end, reader.line_num + 1, 0
        if marked.end > start:
            yield _piece(item, known, reader, start, marked.end, part, rows)


def _piece(item: dict, known: dict, reader: Any, start: int, stop: int, part: int, rows: int) -> dict:
    piece = {"from": start, "to": stop, "size": stop - start, "part": part, "rows": rows}
    return {**item, **known, **piece, "delimiter": reader.dialect.delimiter}


def _readable(reader: Any) -> Iterator[list[str]]:
    """The rows of a table; those that are none have no cells."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield []


def _delimiters(path: str) -> str:
    return DELIMITERS.get(suffix(path), DELIMITERS[".csv"])


class Lines:
    """The lines of a text with their ends, `\\n`, `\\r` or both. Of one that is longer than `limit` characters the rest
    is dropped, and `too_long` is set."""

    def __init__(self, blocks: Iterator[bytes], encoding: str, limit: int):
        head = next(blocks, b"")
        self.encoding, skip = encodings.by_mark(head, encoding)
        stream = io.BufferedReader(_Blocks(chain([head[skip:]], blocks)), 1 << 20)
        # Bytes that are wrong become lone surrogates, which cost their row and no other.
        self._text = io.TextIOWrapper(stream, self.encoding, "surrogateescape", newline="")
        self.limit, self.too_long = limit, False

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        try:
            line = part = self._text.readline(self.limit)
            while len(part) == self.limit and part[-1] not in "\r\n":
                self.too_long, part = True, self._text.readline(self.limit)
        except UnicodeError as error:
            raise encodings.undecodable(error, self.encoding) from None
        if not line:
            raise StopIteration
        return line


class _MarkedLines(Lines):
    """The same; `end` is the place in the file behind the line that came last."""

    def __init__(self, blocks: Iterator[bytes], encoding: str, limit: int):
        self.limit, self.too_long = limit, False
        head = next(blocks, b"")
        self.encoding, self.end = encodings.by_mark(head, encoding)
        self._bytes = io.BufferedReader(_Blocks(chain([head[self.end :]], blocks)), 1 << 20)

    def __next__(self) -> str:
        line = self._bytes.readline()
        if not line:
            raise StopIteration
        self.end += len(line)
        if b"\r" in line.rstrip(b"\r\n"):
            raise ValueError("a carriage return within a line: what is a line is another matter then")
        return line.decode(self.encoding, "replace")[: self.limit]


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a stream."""

    def __init__(self, blocks: Iterator[bytes]):
        super().__init__()
        self._blocks, self._rest = blocks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = memoryview(block)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def table(
    lines: Lines, delimiters: str, columns: Sequence[str] = (), first: int = 1
) -> Iterator[tuple[int, dict | Reject]]:
    """(line, row) of a table, in which empty cells are left out; a line that is no row comes as `Reject`. `columns`
    are the names where no line has them, and `first` is the first line's number. The delimiter is the one that the
    first line has most of."""
    reader = _reader(lines, delimiters)
    names = list(columns)
    while True:
        line = reader.line_num + first
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, Reject("bad_manifest_row", str(error))
            continue
        too_long, lines.too_long = lines.too_long, False
        if too_long:
            yield line, Reject("too_large", f"a line of more than {lines.limit} characters")
        elif not names:
            names = [cell.strip() for cell in cells]
        elif len(cells) > len(names):
            yield line, Reject("bad_manifest_row", f"{len(cells)} columns, the first line names {len(names)}")
        elif not all(map(encodable, cells)):
            code = "invalid_utf8" if lines.encoding == "utf-8" else "invalid_encoding"
            yield line, Reject(code, f"not {lines.encoding}")
        elif any(cells):
            yield line, {name: _cell(cell) for name, cell in zip(names, cells, strict=False) if name and cell}


def _reader(lines: Lines, delimiters: str) -> Any:
    csv.field_size_limit(max(csv.field_size_limit(), lines.limit))
    head = next(lines, "")
    delimiter = max(delimiters, key=re.sub(r'"[^"]*"', "", head).count)
    return csv.reader(chain([head], lines), delimiter=delimiter, skipinitialspace=True)


def _cell(cell: str) -> Any:
    """A cell; one that holds a JSON list of texts stands for them."""
    if cell.startswith("["):
        try:
            value = json.loads(cell)
        except (ValueError, RecursionError):
            return cell
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return value
    return cell
