"""Text files, cut into records at the ends of paragraphs."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from typing import Literal

from omniloom.stages.ingest.glimpse import Glimpse, Recognition
from omniloom.stages.ingest.kinds.base import SourceKind
from omniloom.stages.ingest.options import FORMER_FIELDS, SourceConfig

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
        """Texts, less those that tell a person about the other files."""
        paths = glimpse.having(cls.suffixes)
        texts = frozenset(path for path in paths if not _NOTES.match(posixpath.basename(path)))
        return Recognition(texts) if texts else None

    def read(self, item: dict) -> Iterator[dict]:
        from omniloom.stages.ingest import rows, texts

        text = texts.decode_text(self.content(item["path"], item["size"]), self.config.encoding)
        for part, chunk in enumerate(texts.chunk_text(text, self.chunk_chars)):
            yield rows.text_row(chunk, part)
