"""Cells: what the value of a row's field may be where it stands for a picture or a video, or for text.

A picture is bytes, the `{bytes, path}` of the `datasets` library, a data: URI or base64 text, or the name of a file.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.annotations.references import References

# Base64 of the first bytes of PNG, JPEG, GIF, WebP (RIFF), BMP and MP4.
_BASE64_HEADS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "AAAA")
_SHORTEST = 64  # characters of base64 text that is a picture
_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.+-]+=[^;,]*)*(;base64)?,", re.IGNORECASE)


def value_at(row: dict, name: str) -> Any:
    """The value of a field; of a field within fields, "a.b", where no field is called so. Lists are passed through:
    "a.b" of {"a": [{"b": 1}, {"b": 2}]} is [1, 2]."""
    if name in row or "." not in name:
        return row.get(name)
    head, rest = name.split(".", 1)
    inner = row.get(head)
    if isinstance(inner, list):
        return [value_at(item, rest) for item in inner if isinstance(item, dict)]
    return value_at(inner, rest) if isinstance(inner, dict) else None


def media(value: Any, field: str, references: References, document: str, what: str = "a picture") -> tuple[bytes, str]:
    """The content of a picture or a video, and the name it has, if any. `document` is the path of the file that holds
    the row. MediaError where there is none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    name = ""
    if isinstance(value, dict):
        name = next((value[key] for key in ("path", "url", "uri", "file_name") if isinstance(value.get(key), str)), "")
        value = value["bytes"] if value.get("bytes") is not None else name
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), name
    if isinstance(value, str) and value:
        if (data := inline(value)) is not None:
            return data, ""
        return references.read(value, document), value
    if isinstance(value, list) and value:
        raise MediaError("missing_field", f"{field}: expected one file, got a list of {len(value)}")
    raise MediaError("missing_field", f"{field}: expected the name or the bytes of {what}, got {value!r:.80}")


def inline(text: str) -> bytes | None:
    """The bytes that a text itself is, as a data: URI or as base64 of a picture or a video; None for a name."""
    if match := _DATA_URI.match(text):
        body = text[match.end() :]
        return _decoded(body) if match.group(1) else unquote_to_bytes(body)
    if len(text) >= _SHORTEST and text.startswith(_BASE64_HEADS) and re.fullmatch(r"[A-Za-z0-9+/\s]+={0,2}\s*", text):
        try:
            return _decoded(text)
        except MediaError:
            return None
    return None


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(re.sub(r"\s+", "", text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError("invalid_base64", str(error)) from None
