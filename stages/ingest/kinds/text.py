"""Text files, cut into records at the ends of paragraphs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from itertools import chain
from typing import Literal

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest import texts
from omniloom.stages.ingest.files import encoding
from omniloom.stages.ingest.files.suffixes import compression
from omniloom.stages.ingest.kinds.base import SourceKind
from omniloom.stages.ingest.look.glimpse import Glimpse, Recognition
from omniloom.stages.ingest.options import FORMER_FIELDS, SourceConfig
from omniloom.stages.ingest.rejects import Reject
from omniloom.stages.ingest.text_runs import Texts

_NOTES = re.compile(r"(readme|license|licence|copying|changelog|changes|notice|authors|citation)\b", re.IGNORECASE)


class TextConfig(SourceConfig):
    """Text files. About `chunk_chars` characters are a record, cut at the ends of paragraphs."""

    CANONICAL = FORMER_FIELDS

    kind: Literal["text"]
    """Text files, cut into records at the ends of paragraphs."""


class Text(SourceKind):
    Config = TextConfig
    suffixes = (".txt", ".text", ".md", ".rst")

    @classmethod
    def makes(cls, config: TextConfig) -> str:
        return "text"

    @classmethod
    def recognize(cls, glimpse: Glimpse) -> Recognition | None:
        """Texts, less those about the other files, and less folders whose first text has no letter."""
        paths = [path for path in glimpse.having(cls.suffixes) if not _NOTES.match(posixpath.basename(path))]
        firsts = {posixpath.dirname(path): path for path in reversed(paths)}
        speaking = {folder for folder, path in firsts.items() if glimpse.speaks(path)}
        found = frozenset(path for path in paths if posixpath.dirname(path) in speaking)
        return Recognition(found) if found else None

    def cut(self, item: dict, size: int, count: int) -> Iterator[dict]:
        """By bytes, where a section begins. A compressed file, in which no place can be found, is one."""
        step = max(1, size // texts.SECTION) * texts.SECTION
        if item["size"] <= step or not self._has_sections(item) or compression(item["path"]):
            yield item
            return
        head = next(self.root.blocks(item["path"], 0, 4), b"")
        name, _ = encoding.by_mark(head, self.config.encoding)
        if not encoding.has_lines(name):
            yield item
            return
        start = 0
        while start < item["size"]:
            stop = self._line(item, start // texts.SECTION * texts.SECTION + step)
            yield {**item, "from": start, "to": stop, "size": stop - start, "encoding": name}
            start = stop

    def _has_sections(self, item: dict) -> bool:
        large = (
            item["size"] > texts.SECTION or compression(item["path"]) is not None
        )  # how large once read, no one knows
        return large and self.limits.max_bytes >= texts.SECTION

    def _line(self, item: dict, at: int) -> int:
        """Where the first line at or behind byte `at` begins, or the file ends."""
        start = at - 1
        for block in self.root.blocks(item["path"], start, item["size"]):
            if end := block.find(b"\n") + 1:
                return start + end
            start += len(block)
        return item["size"]

    def read(self, item: dict) -> Iterator[Texts | Reject]:
        """A record per chunk. Of a large file each section is read by itself, and is a reject by itself."""
        empty = "from" not in item
        name = item.get("encoding", self.config.encoding)
        for start, data in self._sections(item, name):
            part = texts.first_part(start, self.chunk_chars)
            try:
                if data is None:
                    raise MediaError("too_large", f"no end of a line in {self.limits.max_bytes} bytes")
                chunks = texts.chunk_text(texts.decode_text(data, name), self.chunk_chars)
            except MediaError as error:
                if error.code != "empty":
                    empty = False
                    where = f"in the bytes from {start}: " if start else ""
                    yield Reject(error.code, where + error.message, part)
                continue
            empty = False
            yield Texts(chunks, range(part, part + len(chunks)))
        if empty:
            raise MediaError("empty", "nothing but white space" if item["size"] else "the file has no bytes")

    def _sections(self, item: dict, name: str) -> Iterator[tuple[int, bytes | None]]:
        """(where it begins, its bytes) of each section of the file, or of the piece."""
        if "from" not in item and not self._has_sections(item):
            return iter([(0, self.content(item["path"], item["size"]))])
        blocks = self.root.blocks(item["path"], item.get("from", 0), item.get("to"))
        head = next(blocks, b"")
        if not encoding.has_lines(encoding.by_mark(head, name)[0]):
            return iter([(0, self.content(item["path"], item["size"]))])
        return texts.sections(chain([head], blocks), item.get("from", 0), self.limits.max_bytes)
