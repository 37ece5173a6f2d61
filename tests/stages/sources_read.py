"""What tests of sources read: the records and rejects of one source, as a worker has them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omniloom.stages.ingest import sources
from omniloom.stages.ingest.config import Config
from omniloom.stages.ingest.readers import Reader


def read(kind: str, uri: Any, limits: dict | None = None, **options) -> tuple[list[dict], list[dict]]:
    """(records, rejects) of a source, planned and read as `ingest` does."""
    config = Config.model_validate({"sources": [{"kind": kind, "uri": str(uri), **options}], "limits": limits or {}})
    sources.listing(config)
    reader = Reader(config, 0)
    rows = [row for item in sources.items(config) for row in reader.read(item)]
    return [row for row in rows if "code" not in row], [row for row in rows if "code" in row]


def cut(kind: str, path: Path, size: int, count: int, **options) -> tuple[list[dict], list, list]:
    """(pieces, what they give, what the whole file gives) of a source that is one file."""
    config = Config.model_validate({"sources": [{"kind": kind, "uri": str(path), **options}]})
    (item,) = sources.items(config)
    opened = Reader(config, 0)
    try:
        pieces = list(opened.kind.cut(item, size, count))
    except Exception:  # what cannot be looked into is one piece
        pieces = [item]
    return pieces, [row for piece in pieces for row in opened.read(piece)], list(opened.read(item))


def picture(number: int, size: int = 12) -> bytes:
    """A PNG of noise, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()
