"""Containers: what the bytes of a video file say of themselves before any decoder has seen them.

In: a file's bytes. Out: whether they begin like a video or like a still picture, and the size that the container's
lengths ask for. Layouts: ISO/IEC 14496-12 boxes, RIFF chunks, EBML (RFC 8794), GIF89a blocks, Ogg pages (RFC 3533),
ASF objects.
"""

from __future__ import annotations

from collections.abc import Iterator


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


_STILLS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\0\0\1\0", "ICO"),
)


def still_picture(data: bytes) -> str | None:
    """The name of the format where the file is a picture that stands still; None for anything else.

    HEIC and AVIF files have the boxes of a video; one of them is a sequence where it has a movie box too. A PNG or a
    GIF is a picture until it has a second frame.
    """
    if data[4:8] == b"ftyp":
        names = {name for name, _ in _boxes(data)}
        return "HEIC or AVIF" if b"meta" in names and b"moov" not in names else None
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return None if b"acTL" in data[: data.find(b"IDAT")] else "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        end, pictures = _gif_walk(data)
        return "GIF of one frame" if pictures < 2 and end <= len(data) else None
    return next((name for begin, name in _STILLS if data.startswith(begin)), None)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(name, end) of top-level boxes: a 32-bit length, or 1 and a 64-bit length, or 0 for "to the end". What follows
    the last box and is none, such as a camera's trailer, ends the walk."""
    at = 0
    while at + 16 <= len(data):
        name, length = data[at + 4 : at + 8], int.from_bytes(data[at : at + 4])
        length = int.from_bytes(data[at + 8 : at + 16]) if length == 1 else length or len(data) - at
        if length < 8 or not all(32 <= letter < 127 for letter in name):
            return
        at += length
        yield name, at


def cut_short(data: bytes) -> str | None:
    """What is missing at the end, by the container's own lengths; None where nothing is or it states none.

    Decoders make do with what is left of a cut file and do not always say so.
    """
    if (promised := promised_bytes(data)) and promised > len(data):
        return f"{len(data)} of {promised} bytes"
    if data[:4] == b"OggS" and not _ogg_ends(data):
        return "no page ends a stream"
    return None


def promised_bytes(data: bytes) -> int | None:
    """The least size that the container's own lengths ask for; None where it states none."""
    if data[4:8] == b"ftyp":
        return max((end for _, end in _boxes(data)), default=None)
    if data[:4] == b"RIFF":
        length = int.from_bytes(data[4:8], "little")
        return length + 8 if 0 < length < 0xFFFFFFFF else None
    if data[:4] == b"\x1aE\xdf\xa3":
        return _ebml_end(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _gif_walk(data)[0]
    if data[:16] == _ASF_HEADER:
        return _asf_end(data)
    return None


def _ebml_end(data: bytes) -> int | None:
    """Where the outermost elements end. One of unknown length (a live stream's segment) counts by what is in it."""
    at, end = 0, None
    while at < len(data):
        first = data[at]
        if first < 0x10:
            return end  # no identifier begins so
        at += 9 - first.bit_length()  # its own length, in the place of its first set bit
        after = _after_element(data, at)
        if after is None:
            if at >= len(data) or not data[at]:
                return end
            at += 9 - data[at].bit_length()
        else:
            at = end = after
    return end


def _after_element(data: bytes, at: int) -> int | None:
    """Where an EBML element ends whose length field begins at `at`; None for one of unknown length."""
    first = data[at] if at < len(data) else 0
    if not first:
        return None
    size = 9 - first.bit_length()
    length = int.from_bytes(data[at : at + size]) & ((1 << 7 * size) - 1)
    return None if length == (1 << 7 * size) - 1 else at + size + length


def _gif_walk(data: bytes) -> tuple[int, int]:
    """Where the trailer byte is reached block by block, beyond the data if it ends before; and how many pictures."""
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    pictures = 0
    while at < len(data):
        kind = data[at]
        if kind == 0x21:  # extension: label, then sub-blocks
            at += 2
        elif kind == 0x2C and at + 9 < len(data):  # image: descriptor, colour table, code size, then sub-blocks
            at += 11 + (3 << ((data[at + 9] & 7) + 1) if data[at + 9] & 0x80 else 0)
            pictures += 1
        else:
            return at + 1, pictures  # the trailer, or what no decoder goes past
        while at < len(data) and data[at]:
            at += data[at] + 1
        at += 1
    return at + 1, pictures


def _ogg_ends(data: bytes) -> bool:
    """Whether a page says that it is its stream's last, and the file does not end inside a page."""
    at, last = 0, False
    while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        last = last or bool(data[at + 5] & 4)
        if end > len(data):
            return False
        at = end
    return last


_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")


def _asf_end(data: bytes) -> int | None:
    """Where the data object ends, which follows the header object; a broadcast leaves its length at 0."""
    at = int.from_bytes(data[16:24], "little")
    if data[at : at + 16] != _ASF_DATA:
        return at or None
    length = int.from_bytes(data[at + 16 : at + 24], "little")
    return at + length if length > 50 else None
