"""Small pictures of records for a page."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from omniloom.stages.data.media.limits import MediaError

if TYPE_CHECKING:
    from omniloom.stages.curate.item import Item

SIDE = 144


def thumbnail(item: Item) -> bytes | None:
    """A picture, or three frames of a video side by side, as PNG of at most SIDE pixels a picture; None of a text."""
    try:
        if item.kind == "image":
            return _png([item.pixels])
        if item.kind == "video":
            frames = item.clip.frames
            return _png([frames[0], frames[len(frames) // 2], frames[-1]])
    except MediaError:
        return None
    return None


def _png(found: list[np.ndarray]) -> bytes:
    small = []
    for pixels in found:
        picture = Image.fromarray(pixels)
        picture.thumbnail((SIDE, SIDE))
        small.append(np.asarray(picture))
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(small, axis=1)).save(sink, "PNG", optimize=True)
    return sink.getvalue()
