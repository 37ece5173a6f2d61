"""What a picture's file says of its own soundness, where the decoder that is used keeps silent.

In: the bytes. Out: `MediaError` for a JPEG whose coded data end early or make no sense (libjpeg's warnings, which
Pillow does not pass on), for a progressive JPEG that lacks scans, for a PNG whose checksums do not hold, and for a
JPEG of more scans than the limits allow. Layouts: ITU-T T.81 annex B, PNG (ISO/IEC 15948) clause 5.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, field

import simplejpeg
from PIL import ExifTags, Image

from omniloom.stages.data.media.limits import DECODE_ERRORS, Limits, MediaError

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, without DHT, JPG, DAC
_CODED = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the first marker after a scan's coded data
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_ALL = (1 << 64) - 1
_DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression")


@dataclass
class Jpeg:
    """`coded`: the file up to its first end marker, without application data and comments. `exact`: of each component
    the coefficients that the scans have brought to their last bit, bit k for the k-th of 64."""

    coded: bytearray = field(default_factory=bytearray)
    scans: int = 0
    components: list[int] = field(default_factory=list)
    exact: dict[int, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the scans bring every coefficient of every component to its last bit."""
        return all(self.exact.get(name) == _ALL for name in self.components)


def plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG of the usual kind: grey or of three colours in 8 bits, all of it in one scan, upright,
    a single picture. None for any other, and for what is broken before its scan."""
    at, size = 2, None
    components = 0
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        body = data[at + 4 : at + 2 + length]
        if marker in (0xC0, 0xC1):
            if size or len(body) < 6 or body[0] != 8 or body[5] not in (1, 3):
                return None
            size, components = (int.from_bytes(body[1:3]), int.from_bytes(body[3:5])), body[5]
        elif marker == _SOS:
            whole = body[:1] == bytes([components]) and body[1 + 2 * components :] == b"\0\x3f\0"
            return size if size and all(size) and whole else None
        elif marker in _FRAME_HEADERS or marker in (0xFF, 0x01, _SOI, _EOI):
            return None
        elif marker == 0xE1 and not _lies_upright(body):
            return None
        elif marker == 0xE2 and body.startswith(b"MPF\0"):
            return None
        at += 2 + length
    return None


def _lies_upright(body: bytes) -> bool:
    """Whether what a JPEG's EXIF or XMP data say of its orientation, if anything, is that."""
    if not body.startswith(b"Exif\0\0"):
        return b"rientation" not in body
    found = Image.Exif()
    try:
        found.load(body)
        return found.get(ExifTags.Base.Orientation, 1) == 1
    except DECODE_ERRORS:
        return False


def read_jpeg(data: bytes) -> Jpeg:
    """The structure of a JPEG; of a broken one, as far as it goes."""
    jpeg, at = Jpeg(), 2
    jpeg.coded += data[:2]
    lossless = False
    while found := _MARKER.search(data, at):
        marker, start = data[found.start() + 1], found.start()
        if marker == _EOI:
            jpeg.coded += data[at : found.end()]
            break
        if marker == _SOI or 0xD0 <= marker <= 0xD7 or marker == 0x01:  # stands alone
            at = found.end()
            continue
        jpeg.coded += data[at:start]
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        body = data[start + 4 : end]
        if marker in _FRAME_HEADERS and len(body) >= 6:
            jpeg.components = [body[6 + 3 * i] for i in range(body[5]) if 6 + 3 * i < len(body)]
            lossless = marker in (0xC3, 0xC7, 0xCB, 0xCF)
        if marker == _SOS:
            jpeg.scans += 1
            _note_scan(jpeg, body, lossless)
            coded_end = _CODED.search(data, end)
            end = coded_end.start() if coded_end else len(data)
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            jpeg.coded += data[start:end]
        at = end
    else:
        jpeg.coded += b"\xff\xd9"  # where it alone is gone, nothing of the picture is
    return jpeg


def _note_scan(jpeg: Jpeg, body: bytes, lossless: bool) -> None:
    if not body or len(body) < 4 + 2 * body[0]:
        return
    first, last, precision = body[1 + 2 * body[0] : 4 + 2 * body[0]]
    if lossless:  # no coefficients: what stands there are a predictor and a shift
        first, last, precision = 0, 63, 0
    band = _ALL >> 63 - min(last, 63) & _ALL << first
    for name in body[1 : 1 + 2 * body[0] : 2]:
        before = jpeg.exact.get(name, 0)
        jpeg.exact[name] = before & ~band if precision & 15 else before | band


def check_scans(scans: int, width: int, height: int, limits: Limits) -> None:
    """Raises `too_costly` for a JPEG that makes the decoder go over the picture too often."""
    scans = max(1, scans)
    if width * height * scans > limits.max_scan_pixels:
        raise MediaError(
            "too_costly",
            f"{width}x{height} pixels in {scans} scans, at most {limits.max_scan_pixels} pixels over all scans",
        )


def check_jpeg(jpeg: Jpeg, decoded: bool = False) -> None:
    """Raises `truncated` or `corrupt` for a JPEG that decoders show in spite of damage. `decoded`: whole, and without
    a warning."""
    if damage := None if decoded else _jpeg_damage(bytes(jpeg.coded)):
        raise MediaError("corrupt", damage)
    if jpeg.components and not jpeg.complete:
        raise MediaError("truncated", f"only {jpeg.scans} scans, which leave the picture coarse")


def _jpeg_damage(coded: bytes) -> str | None:
    """libjpeg's first warning that tells of damaged coded data. An eighth of the size: the bits are all read."""
    try:
        simplejpeg.decode_jpeg(coded, _colourspace(coded), min_height=1, min_width=1, strict=True)
    except ValueError as error:
        message = str(error)
    else:
        return None
    if found := _EXTRANEOUS.search(message):  # padding before the end marker harms nothing
        end, count = coded.rfind(b"\xff\xd9"), int(found.group(1))
        padding = coded[max(0, end - count) : end]
        if len(set(padding)) == 1 and coded[end - count - 1 : end - count]:
            return _jpeg_damage(coded[: end - count] + b"\xff\xd9")
    return message if message.startswith(_DAMAGE) else None


def _colourspace(coded: bytes) -> str:
    """Luma alone costs least; four components have none."""
    return "CMYK" if simplejpeg.decode_jpeg_header(coded, strict=False)[2] in ("CMYK", "YCCK") else "GRAY"


def check_png(data: bytes) -> None:
    """Raises `corrupt` for a PNG of which a chunk that the picture needs has another checksum than it says."""
    at = 8
    while at + 8 <= len(data):
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 8 + length
        if name[:1].isupper() or name == b"tRNS":  # a decoder cannot do without; others are its own affair
            if int.from_bytes(data[end : end + 4]) != zlib.crc32(memoryview(data)[at + 4 : end]):
                raise MediaError("corrupt", f"the checksum of chunk {name.decode('latin-1')} does not hold")
        if name == b"IEND":
            return
        at = end + 4
