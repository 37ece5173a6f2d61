"""Documents as OBELICS has them: a list of texts and a list of images side by side, with nulls where the other has
something."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.kinds.web_documents import WebDocuments, WebDocumentsConfig


class ObelicsConfig(WebDocumentsConfig):
    """Documents as OBELICS has them, in Parquet, Arrow or JSON: `texts` and `images` side by side. Images are bytes,
    `{bytes, path}` structs, or names of files."""

    kind: Literal["obelics"]
    """Documents as OBELICS has them: lists of texts and images side by side."""


class Obelics(WebDocuments):
    Config = ObelicsConfig
    fields = ("texts", "images")

    def parts(self, row: dict) -> Iterator[tuple[str, Any]]:
        texts, images = row.get("texts"), row.get("images")
        if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
            raise MediaError("bad_segments", "expected lists `texts` and `images` of one length")
        for text, image in zip(texts, images, strict=True):
            if image not in (None, ""):
                yield "image", image
            if isinstance(text, str):
                yield "text", text
            elif text is not None:
                raise MediaError("bad_segments", f"texts: expected text, got {text!r:.80}")
