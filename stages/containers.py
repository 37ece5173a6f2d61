"""Containers: what the bytes of a video file say of themselves before any decoder has seen them.

In: a file's bytes. Out: whether they begin like a video, and the size that the container's lengths ask for.
Layouts: ISO/IEC 14496-12 boxes, RIFF chunks, EBML (RFC 8794), GIF89a blocks.
"""

from __future__ import annotations


def looks_like_video(data: bytes) -> bool:
    head = data[:64]
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide")
        or head[:4] in (b"\x1aE\xdf\xa3", b"OggS")
        or head[:4] == b"RIFF"
        and head[8:12] == b"AVI "
        or head[:6] in (b"GIF87a", b"GIF89a")
        or head[:4] in (b"\0\0\1\xba", b"\0\0\1\xb3")
    )


def promised_bytes(data: bytes) -> int | None:
    """The least size that the container's own lengths ask for; None where it states none.

    Decoders make do with what is left of a cut file and do not always say so.
    """
    if (
        data[4:8] == b"ftyp"
    ):  # top-level boxes: 32-bit length, or 1 and a 64-bit length, or 0 for "to the end"
        at = 0
        while at + 16 <= len(data):
            length = int.from_bytes(data[at : at + 4])
            length = int.from_bytes(data[at + 8 : at + 16]) if length == 1 else length
            if length < 8:
                return None
            at += length
        return at
    if data[:4] == b"RIFF":
        length = int.from_bytes(data[4:8], "little")
        return length + 8 if 0 < length < 0xFFFFFFFF else None
    if data[:4] == b"\x1aE\xdf\xa3":  # EBML header, then one Segment element that states its length
        at = _after_element(data, 4)
        if at is None or data[at : at + 4] != b"\x18\x53\x80\x67":
            return None
        return _after_element(data, at + 4)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _gif_end(data)
    return None


def _after_element(data: bytes, at: int) -> int | None:
    """Where an EBML element ends whose length field begins at `at`; None for one of unknown length (a live
    stream).
    """
    first = data[at] if at < len(data) else 0
    if not first:
        return None
    size = 9 - first.bit_length()
    length = int.from_bytes(data[at : at + size]) & ((1 << 7 * size) - 1)
    return None if length == (1 << 7 * size) - 1 else at + size + length


def _gif_end(data: bytes) -> int:
    """Where the trailer byte is reached block by block; beyond the data if it ends before."""
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    while at < len(data):
        kind = data[at]
        if kind == 0x21:  # extension: label, then sub-blocks
            at += 2
        elif kind == 0x2C and at + 9 < len(
            data
        ):  # image: descriptor, colour table, code size, then sub-blocks
            at += 11 + (3 << ((data[at + 9] & 7) + 1) if data[at + 9] & 0x80 else 0)
        else:
            return at + 1  # the trailer, or what no decoder goes past
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    return at + 1
