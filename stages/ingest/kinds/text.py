"""Text files, cut into records at the ends of paragraphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from omniloom.stages.ingest.kinds.base import SourceKind
from omniloom.stages.ingest.options import FORMER_FIELDS, SourceConfig


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

    def read(self, item: dict) -> Iterator[dict]:
        from omniloom.stages.ingest import rows, texts

        text = texts.decode_text(self.content(item["path"], item["size"]), self.config.encoding)
        for part, chunk in enumerate(texts.chunk_text(text, self.chunk_chars)):
            yield rows.text_row(chunk, part)
