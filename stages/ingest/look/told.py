"""Captions that pictures carry in themselves: PNG texts, EXIF, IPTC, XMP and comments.

In: a root and paths of pictures. Out: the caption by path, of those that have one. What a camera or a program writes
into every file is no caption: most of what is found has to differ.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from omniloom.infra.errors import InputError
from omniloom.stages.data.media.limits import DEFAULT_LIMITS, MediaError
from omniloom.stages.ingest.files.roots import Root
from omniloom.stages.ingest.files.suffixes import IMAGES, suffix
from omniloom.stages.ingest.look import xmp

_FIRST = 40  # pictures, of which some have to say something before all are read
_INFOS = ("caption", "description", "title", "parameters", "prompt", "comment")  # of PNG, WebP, GIF and JPEG
_EXIF = {0x010E: "utf-8", 0x9C9B: "utf-16-le", 0x9C9F: "utf-16-le"}  # ImageDescription, XPTitle, XPSubject
_IPTC_CAPTION = (2, 120)


def told(root: Root, paths: Sequence[str], least: float) -> dict[str, str]:
    """Empty where less than the share `least` of them say something, or most say the same."""
    pictures = [path for path in paths if suffix(path) in IMAGES]
    if not pictures:
        return {}
    some = pictures[:: -(-len(pictures) // _FIRST)]
    if not _differ(_read(root, some), least * len(some)):
        return {}
    found = _read(root, pictures)
    return found if _differ(found, least * len(pictures)) else {}


def _differ(found: dict[str, str], least: float) -> bool:
    return len(found) >= max(2.0, least) and len(set(found.values())) > 0.5 * len(found)


def _read(root: Root, paths: Sequence[str]) -> dict[str, str]:
    return {path: text for path in paths if (text := _caption(root, path))}


def _caption(root: Root, path: str) -> str:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(root.read(path, DEFAULT_LIMITS.max_bytes))) as image:
            return next(filter(None, map(_words, _texts(image))), "")
    except (MediaError, InputError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""


def _texts(image: Any) -> list[Any]:
    """What is written in a picture, the surest first."""
    from PIL import IptcImagePlugin

    infos = {str(key).lower(): value for key, value in image.info.items()}
    exif = image.getexif()
    return [
        (IptcImagePlugin.getiptcinfo(image) or {}).get(_IPTC_CAPTION),
        xmp.description(_words(image.info.get("xmp"))),
        *(_decoded(exif.get(tag), name) for tag, name in _EXIF.items()),
        *(infos.get(name) for name in _INFOS),
    ]


def _decoded(value: Any, name: str) -> Any:
    value = (
        bytes(value) if isinstance(value, tuple) and all(isinstance(v, int) and 0 <= v < 256 for v in value) else value
    )
    return value.decode(name, "replace") if isinstance(value, bytes) else value


def _words(value: Any) -> str:
    """As one line; empty of what is no text."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return " ".join(text.replace("\0", " ").split()) if isinstance(text, str) else ""
