"""JPEGs of the usual kind are read without Pillow, and are what Pillow would have made of them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from omniloom.stages.data.media import images
from omniloom.stages.data.media.decode import probe_image
from omniloom.stages.data.media.identity import LOOK_SIDE, picture_look
from omniloom.stages.data.media.image_checks import plain_jpeg
from omniloom.stages.data.media.limits import DEFAULT_LIMITS, Limits, MediaError

RNG = np.random.default_rng(4)
PIXELS = np.asarray(Image.fromarray(RNG.integers(0, 256, (7, 9, 3), np.uint8)).resize((90, 61)))


def jpeg(mode: str = "RGB", **options) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(sink, "JPEG", **options)
    return sink.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def segment(marker: int, body: bytes) -> bytes:
    data = jpeg()
    return data[:2] + bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2) + body + data[2:]


XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
PLAIN = {
    "colour": jpeg(),
    "grey": jpeg("L"),
    "no subsampling": jpeg(subsampling=0, quality=95),
    "upright by EXIF": jpeg(exif=turned(1)),
    "a profile and a comment": jpeg(icc_profile=b"profile" * 30, comment=b"by hand"),
    "optimised": jpeg(optimize=True),
    "restarts": jpeg(restart_marker_blocks=2),
    "bytes behind the end": jpeg() + b"\0trailer\xff\xd9",
}
OTHERS = {
    "progressive": jpeg(progressive=True),
    "on its side": jpeg(exif=turned(6)),
    "on its side by XMP": segment(0xE1, XMP),
    "four colours": jpeg("CMYK"),
    "several pictures": segment(0xE2, b"MPF\0II*\0"),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "cut before its scan": jpeg()[:60],
    "nothing": b"\xff\xd8",
}


@pytest.mark.parametrize("name", PLAIN)
def test_the_usual_kind_is_what_pillow_makes_of_it(name):
    found = images._plainly(PLAIN[name], DEFAULT_LIMITS)
    pixels, info = images._decode_image(PLAIN[name], DEFAULT_LIMITS, intact=True)
    assert found is not None and np.array_equal(found[0], pixels) and found[1] == info
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    assert probe_image(sink.getvalue()).identity == probe_image(PLAIN[name]).identity


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_goes_the_long_way(name):
    assert plain_jpeg(OTHERS[name]) is None


def test_what_is_wrong_with_a_jpeg_is_told_as_before():
    for data, code in ((jpeg(quality=95)[:900], "truncated"), (jpeg()[:-400] + bytes(398) + b"\xff\xd9", "corrupt")):
        assert plain_jpeg(data) == PIXELS.shape[:2]
        with pytest.raises(MediaError) as error:
            probe_image(data)
        assert error.value.code in (code, "corrupt")
    for limits, code in ((Limits(max_pixels=5000), "too_large"), (Limits(max_scan_pixels=5000), "too_costly")):
        with pytest.raises(MediaError) as error:
            probe_image(jpeg(), limits)
        assert error.value.code == code


@pytest.mark.parametrize("size", [(31, 500), (64, 64), (100, 37), (257, 640), (900, 1201)])
def test_a_look_is_the_picture_made_small(size):
    """Against the mean over areas and their neighbours that Pillow's bilinear filter gives in one step."""
    coarse = Image.fromarray(RNG.integers(0, 256, (6, 6, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse)
    look = np.frombuffer(picture_look(pixels), np.uint8).reshape(LOOK_SIDE, LOOK_SIDE, 3).astype(int)
    whole = np.asarray(coarse.resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(look - whole).max() <= 12 and np.abs(look - whole).mean() < 2


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (256, 256), (32, 640)])
def test_a_look_of_whole_blocks_is_their_means(size):
    pixels = RNG.integers(0, 256, (*size, 3), np.uint8)
    blocks = pixels.reshape(LOOK_SIDE, size[0] // LOOK_SIDE, LOOK_SIDE, size[1] // LOOK_SIDE, 3)
    look = np.frombuffer(picture_look(pixels), np.uint8).reshape(LOOK_SIDE, LOOK_SIDE, 3)
    assert (look == np.floor(blocks.mean((1, 3)) + 0.5)).all()


def test_what_whole_blocks_leave_counts_in_a_look():
    """The last rows and columns are of one colour, and no part of a block of their own kind's size."""
    pixels = np.zeros((32 * 9 + 5, 32 * 7 + 3, 3), np.uint8)
    pixels[-5:] = 200
    pixels[:, -3:] = 200
    look = np.frombuffer(picture_look(pixels), np.uint8).reshape(LOOK_SIDE, LOOK_SIDE, 3)
    whole = np.asarray(Image.fromarray(pixels).resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BILINEAR))
    assert np.abs(look.astype(int) - whole).max() <= 25 and look[-1].min() > 60 and look[:, -1].min() > 60
    assert (look[:-2, :-2] == 0).all()
