"""Pictures: what is damaged, still, thin, deep or turned, against closed forms, Pillow and ImageMagick."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import time
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omniloom.stages.data.media import containers
from omniloom.stages.data.media.decode import (
    NO_LIMITS,
    Limits,
    MediaError,
    decode_image,
    encode_mp4,
    probe_image,
    probe_video,
    resize_center_crop,
)

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases" / "data" / "inputs"
Y, X = np.mgrid[0:128, 0:128]
RAMP = np.stack([X * 2, Y * 2, X + Y], -1).astype(np.uint8)


def _imagemagick() -> bool:
    """Whether `convert` is ImageMagick's and no other program of the name."""
    if not (found := shutil.which("convert")):
        return False
    told = subprocess.run([found, "-version"], capture_output=True, text=True)
    return told.stdout.startswith("Version: ImageMagick")


def saved(image, format_: str, **options) -> bytes:
    sink = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(sink, format_, **options)
    return sink.getvalue()


def refusal(call) -> MediaError:
    with pytest.raises(MediaError) as caught:
        call()
    return caught.value


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png16(samples: np.ndarray, colour: int, clear: tuple[int, ...]) -> bytes:
    """A PNG of 16-bit samples (H, W, channels) whose colour `clear` is transparent."""
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# ---- damage ----


def coded_data(data: bytes) -> int:
    """Where the coded data of a JPEG's first scan begin (T.81, B.2.3)."""
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_ends_early_behind_an_end_marker_is_refused(options, mode):
    data = saved(Image.fromarray(RAMP).convert(mode), "JPEG", quality=92, **options)
    assert probe_image(data).format == "jpeg"
    start = coded_data(data)
    for share in (0.1, 0.33, 0.9):
        cut = data[: start + int((len(data) - start) * share)] + b"\xff\xd9"
        assert refusal(lambda: probe_image(cut)).code in ("corrupt", "truncated")  # noqa: B023
    assert decode_image(cut).shape == RAMP.shape, "what can be shown is shown where it is asked for"


def test_flipped_bytes_of_a_jpeg_are_noticed():
    rng = np.random.default_rng(3)
    data = saved(RAMP, "JPEG", quality=92)
    start, noticed = coded_data(data), 0
    for _ in range(20):
        damaged = bytearray(data)
        for at in rng.integers(start, len(data) - 2, 10):
            damaged[at] ^= 0x55
        try:
            probe_image(bytes(damaged))
        except MediaError as error:
            noticed += error.code in ("corrupt", "truncated")
    assert noticed == 20


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    data = saved(RAMP, "JPEG", quality=92, progressive=True)
    last = data.rindex(b"\xff\xda")
    table = data.rindex(b"\xff\xc4", 0, last)  # the Huffman table of the last scan
    error = refusal(lambda: probe_image(data[:table] + b"\xff\xd9"))
    assert error.code == "truncated" and "scans" in error.message


def test_what_stands_behind_or_pads_a_sound_jpeg_harms_nothing():
    data = saved(RAMP, "JPEG", quality=92)
    assert probe_image(data + b"<html>" * 50).width == 128
    assert probe_image(data[:-2] + bytes(40) + data[-2:]).width == 128
    junk = data[:-2] + bytes(range(1, 60)) + data[-2:]
    assert refusal(lambda: probe_image(junk)).code == "corrupt"
    version = bytearray(data)
    version[data.index(b"JFIF\0") + 5] = 0  # "unknown JFIF revision 0.01", which says nothing of the picture
    assert probe_image(bytes(version)).width == 128
    cut = bytes(version[: (coded_data(data) + len(data)) // 2]) + b"\xff\xd9"
    assert refusal(lambda: probe_image(cut)).code == "corrupt", "nor does it hide what comes after it"


def test_a_png_whose_checksum_does_not_hold_is_refused():
    stored = saved(RAMP, "PNG", compress_level=0)  # nothing but the checksum tells of a flipped pixel
    assert probe_image(stored).width == 128
    at = stored.index(b"IDAT") + 2000
    assert refusal(lambda: probe_image(stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :])).code == "corrupt"


@pytest.mark.skipif(not CASES.is_dir(), reason=f"the found inputs are not at {CASES}")
def test_found_inputs():
    assert refusal(lambda: probe_image((CASES / "jpeg_cut_plus_eoi.jpg").read_bytes())).code == "corrupt"
    assert (decode_image((CASES / "grey16_trns_transparent.png").read_bytes()) == 255).all()
    assert refusal(lambda: probe_image((CASES / "thin_1x4000.png").read_bytes())).code == "too_small"
    started = time.process_time()
    assert refusal(lambda: probe_image((CASES / "jpeg_200_scans.jpg").read_bytes())).code == "too_costly"
    assert time.process_time() - started < 0.5


# ---- limits ----


def test_a_jpeg_costs_its_pixels_times_its_scans():
    data = saved(RAMP, "JPEG", progressive=True)
    cost = 128 * 128 * data.count(b"\xff\xda")
    assert probe_image(data, Limits(max_scan_pixels=cost)).width == 128
    assert refusal(lambda: probe_image(data, Limits(max_scan_pixels=cost - 1))).code == "too_costly"


@pytest.mark.parametrize(
    "width, height, code",
    [
        (8, 8, None),
        (4, 80, None),
        (80, 4, None),
        (81, 4, "too_thin"),
        (4, 81, "too_thin"),
        (3, 32, "too_small"),
        (1, 1, "too_small"),
        (4000, 1, "too_small"),
        (32, 32, None),
    ],
)
def test_shapes_that_are_no_pictures_are_refused_by_ingest_alone(width, height, code):
    data = saved(np.zeros((height, width, 3), np.uint8), "PNG")
    assert decode_image(data).shape == (height, width, 3)
    if code is None:
        assert probe_image(data).width == width
    else:
        assert refusal(lambda: probe_image(data)).code == code
        assert probe_image(data, NO_LIMITS).height == height


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"max_corrupt_fraction": 1.5}, "max_corrupt_fraction"),
        ({"max_aspect": 0.5}, "max_aspect"),
        ({"min_side": 0}, "min_side"),
    ],
)
def test_limits_that_make_no_sense_are_named(fields, name):
    with pytest.raises(ValueError, match=name):
        Limits(**fields)


# ---- scaling ----


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_cutting_before_scaling_equals_scaling_the_whole_and_cutting(height, width, target_h, target_w, seed):
    image = np.random.default_rng(seed).integers(64, 192, (height, width, 3), np.uint8)
    scale = max(target_h / height, target_w / width)
    whole_h, whole_w = max(target_h, round(height * scale)), max(target_w, round(width * scale))
    whole = np.asarray(Image.fromarray(image).resize((whole_w, whole_h), Image.Resampling.BICUBIC)).astype(int)
    top, left = (whole_h - target_h) // 2, (whole_w - target_w) // 2
    expected = whole[top : top + target_h, left : left + target_w]
    # Pillow takes the axes in the order that costs less and rounds in between.
    assert np.abs(resize_center_crop(image, (target_h, target_w)) - expected).max() <= 2


def test_a_strip_costs_what_its_crop_costs():
    for shape in ((100_000, 1, 3), (1, 100_000, 3), (60_000, 4, 3)):
        started = time.process_time()
        assert (resize_center_crop(np.full(shape, 9, np.uint8), 256) == 9).all()
        assert time.process_time() - started < 0.5


# ---- transparency of 16 bits ----


def test_sixteen_bit_grey_of_the_clear_level_is_white():
    grey = np.full((8, 8, 1), 0x8000)
    grey[0, 0], grey[0, 1] = 0x8001, 0xFFFF
    decoded = decode_image(png16(grey, 0, (0x8000,)))
    assert decoded[0, 0].tolist() == [128] * 3 and (decoded[1:] == 255).all() and decoded[0, 1, 0] == 255


def test_sixteen_bit_colour_is_clear_where_all_its_bits_are_the_clear_colours():
    rgb = np.full((8, 10, 3), 0x40FF)
    rgb[:4] = (0x40FF, 0x40FF, 0x40FE)  # differs in the last bit alone
    decoded = decode_image(png16(rgb, 2, (0x40FF, 0x40FF, 0x40FF)))
    assert (decoded[4:] == 255).all() and (decoded[:4] == 0x40).all()


# ---- HEIC, AVIF and stills among videos ----


@pytest.mark.parametrize("format_", ["HEIF", "AVIF"])
@pytest.mark.parametrize(
    "orientation, expected",
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_turns_and_mirrors_of_heic_and_avif_are_applied_once(format_, orientation, expected):
    """The encoders write `irot` and `imir` and leave the EXIF tag in: by the standard it does not count."""
    picture = np.zeros((48, 80, 3), np.uint8)
    picture[:24, :40], picture[:24, 40:], picture[24:, 40:] = (250, 0, 0), (0, 250, 0), (250, 250, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(picture, format_, quality=95, exif=exif.tobytes())
    assert (b"irot" in data or b"imir" in data) == (orientation > 1)
    decoded = decode_image(data)
    assert decoded.shape == expected(picture).shape and np.abs(decoded - expected(picture).astype(int)).mean() < 6
    info = probe_image(data)
    assert (info.height, info.width) == decoded.shape[:2]


def test_of_several_pictures_in_a_heic_the_primary_is_taken_and_of_a_tiff_the_first():
    both = pillow_heif.from_pillow(Image.new("RGB", (64, 48), (250, 0, 0)))
    both.add_from_pillow(Image.new("RGB", (64, 48), (0, 0, 250)))
    for primary in (0, 1):
        sink = io.BytesIO()
        both.save(sink, quality=95, primary_index=primary)
        assert decode_image(sink.getvalue())[20, 30, 2 * primary] > 240
    pages = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert decode_image(data)[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format_", ["HEIF", "AVIF"])
def test_a_cut_heic_or_avif_is_truncated_and_its_alpha_lies_on_white(format_):
    data = saved(RAMP, format_)
    assert np.abs(decode_image(data) - RAMP.astype(int)).mean() < 4
    for share in (0.2, 0.6, 0.95):
        assert refusal(lambda: probe_image(data[: int(len(data) * share)])).code == "truncated"  # noqa: B023
    clear = np.zeros((16, 32, 4), np.uint8)
    clear[:, 16:, 3] = 255
    decoded = decode_image(saved(clear, format_, quality=100))
    assert (decoded[:, :14] > 250).all() and (decoded[:, 18:] < 5).all()


@pytest.mark.parametrize("format_", ["HEIF", "AVIF", "JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_still_is_no_video_and_the_message_says_what_takes_it(format_):
    error = refusal(lambda: probe_video(saved(RAMP, format_)))
    assert error.code == "not_a_video" and "image_folder" in error.message


def test_a_video_is_no_picture_and_the_message_says_what_takes_it():
    error = refusal(lambda: probe_image(encode_mp4(np.zeros((2, 16, 16, 3), np.uint8), 8)))
    assert error.code == "not_an_image" and "video_folder" in error.message


def test_an_avif_sequence_is_a_video_of_all_its_pictures_not_of_its_cover():
    frames = [Image.fromarray(np.roll(RAMP, 16 * i, axis=1)) for i in range(5)]
    data = saved(frames[0], "AVIF", save_all=True, append_images=frames[1:], duration=100)
    assert containers.still_picture(data) is None and probe_video(data).frames == 5


# ---- another program's opinion ----


@pytest.mark.skipif(not _imagemagick(), reason="ImageMagick is not installed")
def test_imagemagick_sees_the_same_pixels(tmp_path):
    rgb = np.full((8, 10, 3), 0x40FF)
    rgb[:4] = (0x40FF, 0x40FF, 0x40FE)
    cases = {
        "trns16.png": png16(rgb, 2, (0x40FF, 0x40FF, 0x40FF)),
        "grey16.png": png16(np.arange(80).reshape(8, 10, 1) * 800, 0, (800,)),
        "two.tif": saved(RAMP, "TIFF"),
        "p.jpg": saved(RAMP, "JPEG", quality=95, progressive=True),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        out = subprocess.run(
            ["convert", f"{tmp_path / name}[0]", "-background", "white", "-alpha", "remove", "-depth", "8", "rgb:-"],
            capture_output=True,
            check=True,
        ).stdout
        decoded = decode_image(data)
        assert np.abs(np.frombuffer(out, np.uint8).reshape(decoded.shape) - decoded.astype(int)).max() <= 2, name
