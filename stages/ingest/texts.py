"""Texts of files: decoded, and cut into pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator

from omniloom.stages.data.media.limits import MediaError
from omniloom.stages.ingest.files import encoding

# Bytes of a section, up to the end of a line: a large file is cut into chunks section by section, so that no chunk
# depends on where in the file somebody begins to read.
SECTION = 4 << 20
_PARAGRAPH_END = re.compile(r"\n[ \t]*\n\s*")


def decode_text(data: bytes, name: str = "utf-8") -> str:
    """Text of the encoding `name`, without its byte order mark, line ends as one line feed. Raises MediaError."""
    if not data:
        raise MediaError("empty", "the file has no bytes")
    text = encoding.no_nul(encoding.decode(data, name))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text or text.isspace():
        raise MediaError("empty", "nothing but white space")
    return text


def sections(blocks: Iterator[bytes], start: int, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """(where it begins, its bytes) of each section of a file whose bytes from `start`, where a section begins, are
    `blocks`; None in place of more than `limit` bytes.

    A section ends with the first line that reaches a multiple of `SECTION`, so it can be found from anywhere.
    """
    data, size = bytearray(), 0  # of the section at `start`; `data` is dropped where there is too much of it
    for block in blocks:
        at = 0
        while at < len(block):
            wanted = (start // SECTION + 1) * SECTION - start - size  # bytes until a line's end closes the section
            end = block.find(b"\n", max(at, at + wanted - 1)) + 1 or len(block)
            closed = block.endswith(b"\n", at, end) and end - at >= wanted
            if size + end - at <= limit:
                data += block[at:end]
            else:
                data.clear()
            size, at = size + end - at, end
            if closed:
                yield start, bytes(data) if size <= limit else None
                start, size = start + size, 0
                data.clear()
    if size:
        yield start, bytes(data) if size <= limit else None


def first_part(start: int, chunk_chars: int) -> int:
    """The part of the first chunk of the section that begins at `start`: behind those of all sections before it, for
    half of `chunk_chars` is the mean of the shortest chunks, and a section is shorter than two where it counts as one.
    """
    return start // SECTION * (4 * SECTION // chunk_chars + 2)


def chunk_text(text: str, chunk_chars: int) -> list[str]:
    """Cut at the ends of paragraphs into pieces of about `chunk_chars`; joined they are `text` again.

    A piece ends with the paragraph that brings it to `chunk_chars`. A paragraph that would bring it to twice
    that is cut itself: after a line, else after a space, else anywhere. No piece is blank unless the whole
    text is.
    """
    if len(text) < chunk_chars:
        return [text] if text else []
    chunks, start, at = [], 0, 0
    ends = [match.end() for match in _PARAGRAPH_END.finditer(text)]
    if not ends or ends[-1] != len(text):
        ends.append(len(text))
    for end in ends:
        while end - start >= 2 * chunk_chars:
            if at - start >= chunk_chars // 2 and at > start:
                cut = at
            else:
                window = text[start : start + chunk_chars]
                cut = start + (window.rfind("\n") + 1 or window.rfind(" ") + 1 or chunk_chars)
            chunks.append(text[start:cut])
            start = at = cut
        at = end
        if end - start >= chunk_chars:
            chunks.append(text[start:end])
            start = end
    if start < len(text):
        chunks.append(text[start:])
    return _without_blank(chunks)


def _without_blank(chunks: list[str]) -> list[str]:
    """Blank pieces joined to the one before, or after where there is none before."""
    out: list[str] = []
    for chunk in chunks:
        if out and (not chunk.strip() or not out[-1].strip()):
            out[-1] += chunk
        else:
            out.append(chunk)
    return out
