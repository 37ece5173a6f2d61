"""Record rows: what `stages.data.records` stores of a picture, a video or a text, with what `ingest.splits` asks for.

`split`, `source`, `path`, `group`, `license` and `synthetic` are added by who reads the item.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

from omniloom.stages.data.media import decode as media
from omniloom.stages.data.media.limits import Limits, MediaError
from omniloom.stages.data.media.sketches import text_sketch


def media_row(kind: str, data: bytes, limits: Limits) -> dict:
    """The row of an image's or a video's bytes, once they have been decoded whole. Raises MediaError."""
    row: dict[str, Any] = {"kind": kind, "media": data}
    info: Any
    if kind == "image":
        info = media.probe_image(data, limits)
        row["frames"] = 1
        if (pages := _pages(data, info.format)) > 1:
            row["meta"] = {"pages": pages}
    else:
        info = media.probe_video(data, limits)
        row |= {
            "frames": info.frames,
            "fps": info.fps,
            "duration": info.duration,
            "meta": {"codec": info.codec},
        }
    return row | {
        "id": info.identity,
        "pictures": [info.identity],
        "looks": [info.look],
        "sketch": None,
        "format": info.format,
        "width": info.width,
        "height": info.height,
        "synthetic": info.mark is not None,
    }


def _pages(data: bytes, format: str) -> int:
    """How many pages or frames the file of a picture holds, of which the first is taken."""
    from PIL import Image

    if format not in ("tiff", "gif", "webp", "png"):
        return 1
    try:
        with Image.open(io.BytesIO(data)) as image:
            return getattr(image, "n_frames", 1)
    except Exception:  # what decoded by other means; only a note would be lost
        return 1


def text_row(text: str, part: int) -> dict:
    """Identity and sketch are made for many at once, see `stages.ingest.text_runs`."""
    return {"kind": "text", "format": "text", "text": text, "part": part}


def text_segment(text: str) -> dict:
    """A stretch of a document's text."""
    return {"type": "text", "text": text.strip("\n")}


def image_segment(data: bytes, alt: str, limits: Limits) -> dict:
    """A picture of a document, once it has been decoded whole. Raises MediaError."""
    info = media.probe_image(data, limits)
    return {
        "type": "image",
        "text": alt,
        "media": data,
        "format": info.format,
        "width": info.width,
        "height": info.height,
        "marked": info.mark is not None,
        "shown": (info.identity, info.look),
    }


def document_row(segments: list[dict], meta: dict) -> dict:
    """A document of `text_segment`s and `image_segment`s in order; blank texts are left out. MediaError for an empty
    one."""
    marked = any(segment.pop("marked", False) for segment in segments)
    segments = [s for s in segments if s["type"] == "image" or s["text"].strip()]
    if not segments:
        raise MediaError("empty", "neither text nor images")
    shown = [segment.pop("shown", None) for segment in segments]
    content = [[s["type"], look[0] if look else s["text"]] for s, look in zip(segments, shown, strict=True)]
    pictures = dict(look for look in shown if look)
    return {
        "id": hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest(),
        "kind": "document",
        "format": "markdown",
        "pictures": list(pictures),
        "looks": list(pictures.values()),
        "sketch": text_sketch("\n".join(s["text"] for s in segments if s["type"] == "text")),
        "segments": segments,
        "synthetic": marked,
        "meta": meta,
    }


def captioned(captions: list[str]) -> dict:
    """The columns `caption`, the first, and `captions`, all of them."""
    captions = [caption for caption in captions if caption]
    return {"caption": captions[0] if captions else None, "captions": captions}
