"""Decoding: right or rejected with a reason, whatever the bytes are. Every hostile file is made here."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from omniloom.stages.data.media.decode import (
    NO_LIMITS,
    Limits,
    MediaError,
    decode_image,
    decode_image_to,
    decode_video,
    encode_mp4,
    encode_png,
    probe_image,
    probe_video,
    resize,
    resize_center_crop,
)

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (17, 23, 3), np.uint8)


def saved(image: Image.Image, format_: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format_, **options)
    return sink.getvalue()


def code_of(call) -> str:
    with pytest.raises(MediaError) as caught:
        call()
    return caught.value.code


def video(
    frames: np.ndarray, codec="libx264", format_="mp4", pix_fmt="yuv420p", rate=8, times=None, audio=False
) -> bytes:
    """A clip; `times` (milliseconds) makes the frame rate variable."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=format_) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        stream.codec_context.thread_count = 1  # the same bytes each time
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if audio:
            sound = container.add_stream("aac", rate=16000)
        for i, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio:
            container.mux(sound.encode(silence(1024)))
            container.mux(sound.encode())
    return sink.getvalue()


def silence(samples: int) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="fltp", layout="mono")
    frame.rate = 16000
    return frame


def sound_only() -> bytes:
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        for i in range(4):
            frame = silence(1024)
            frame.pts = i * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return sink.getvalue()


def grey_levels(num_frames: int, height=32, width=48) -> np.ndarray:
    """Frame i is uniformly 20 + 20 i: which frame was taken shows in its mean."""
    return np.stack([np.full((height, width, 3), 20 + 20 * i, np.uint8) for i in range(num_frames)])


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 20) / 20) for frame in frames]


# ---- images ----


@pytest.mark.parametrize("format_", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_decode_to_the_same_pixels(format_):
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(PICTURE), format_)), PICTURE)


def test_webp_lossless_and_wrong_suffix_do_not_matter():
    data = saved(Image.fromarray(PICTURE), "WEBP", lossless=True)
    np.testing.assert_array_equal(decode_image(data), PICTURE)
    assert probe_image(data).format == "webp"


def test_cmyk_jpeg_is_close_to_the_rgb_it_was_made_from():
    smooth = np.full((32, 32, 3), (200, 80, 40), np.uint8)
    cmyk = saved(Image.fromarray(smooth).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(cmyk)).mode == "CMYK"
    assert np.abs(decode_image(cmyk).astype(int) - smooth).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    decoded = decode_image(saved(Image.fromarray(levels), "PNG"))
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 128, 255])
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_float_tiff_in_the_unit_interval_decodes_and_another_range_is_refused():
    unit = np.array([[0.0, 0.5, 1.0]], np.float32)
    assert decode_image(saved(Image.fromarray(unit), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    assert code_of(lambda: decode_image(saved(Image.fromarray(unit * 1000), "TIFF"))) == "unsupported"


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "YCbCr", "LAB", "I", "CMYK"])
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    image = Image.fromarray(PICTURE)
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    format_ = "PNG" if mode in ("1", "L", "P", "LA", "RGBA") else "TIFF"
    assert decode_image(saved(image, format_)).shape == PICTURE.shape


def test_transparency_lies_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0], rgba[0, :, 3] = 255, (0, 128, 255)  # red: clear, half, solid
    decoded = decode_image(saved(Image.fromarray(rgba), "PNG"))
    assert decoded[0].tolist() == [[255, 255, 255], [255, 127, 127], [255, 0, 0]]


def test_a_transparent_palette_entry_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putdata([0, 1])
    decoded = decode_image(saved(image, "PNG", transparency=0))
    assert decoded[0].tolist() == [[255, 255, 255], [10, 20, 30]]


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
def test_exif_orientation_is_applied(orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(PICTURE), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data), expected(PICTURE))
    info = probe_image(data)
    assert (info.height, info.width) == expected(PICTURE).shape[:2]


def test_of_an_animation_the_first_frame_is_taken():
    red, blue = (Image.new("RGB", (8, 6), color) for color in ("red", "blue"))
    data = saved(red, "GIF", save_all=True, append_images=[blue], duration=100)
    assert decode_image(data)[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_every_cut_of_an_image_is_decoded_or_refused(format_):
    data = saved(Image.fromarray(PICTURE), format_)
    assert code_of(lambda: decode_image(data[: len(data) // 2])) in ("truncated", "corrupt", "not_an_image")
    for length in range(0, len(data), 7):
        try:
            decode_image(data[:length])
        except MediaError:
            pass


def test_reason_codes_of_what_is_no_image():
    assert code_of(lambda: decode_image(b"")) == "empty"
    assert code_of(lambda: decode_image(b"this is no image\n" * 20)) == "not_an_image"
    assert code_of(lambda: decode_image(encode_mp4(grey_levels(2), 8))) == "not_an_image"
    assert code_of(lambda: decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")) == "not_an_image"
    assert code_of(lambda: decode_image(saved(Image.fromarray(PICTURE), "PNG"), Limits(max_bytes=10))) == "too_large"


def png_of(width: int, height: int, row_bytes: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row_bytes, 9))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [20_000, 100_000, 2_000_000])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    assert code_of(lambda: decode_image(png_of(side, side, b"\0" * 1000))) == "too_large"


def test_a_bomb_in_a_text_chunk_is_refused():
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    plain = saved(Image.fromarray(PICTURE), "PNG")
    bomb = chunk(b"zTXt", b"omniloom\0\0" + zlib.compress(b"\0" * (80 << 20), 9))
    assert code_of(lambda: decode_image(plain[:33] + bomb + plain[33:])) in ("corrupt", "too_large")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_images_raise_nothing_but_media_error(data):
    format_ = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]))
    content = bytearray(saved(Image.fromarray(PICTURE), format_))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        array = decode_image(bytes(content), Limits(max_pixels=1_000_000))
        assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3
    except MediaError:
        pass


def test_png_round_trip_and_mark():
    assert probe_image(encode_png(PICTURE)).mark is None
    marked = encode_png(PICTURE, {"prompt": "é", "model": "ab12"})
    np.testing.assert_array_equal(decode_image(marked), PICTURE)
    assert probe_image(marked).mark == {"prompt": "é", "model": "ab12"}
    with pytest.raises(ValueError, match="image"):
        encode_png(PICTURE.astype(np.float32))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 33), st.integers(1, 33))
def test_resizing_gives_the_size_asked_for_and_keeps_a_flat_colour(height, width, target_h, target_w):
    flat = np.full((height, width, 3), (7, 100, 250), np.uint8)
    for out in (resize(flat, (target_h, target_w)), resize_center_crop(flat, (target_h, target_w))):
        assert out.shape == (target_h, target_w, 3)
        assert (out == (7, 100, 250)).all()


def test_center_crop_takes_the_middle_and_clips_frames_alike():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    np.testing.assert_array_equal(resize_center_crop(wide, 10), np.full((10, 10, 3), 255, np.uint8))
    assert resize_center_crop(np.stack([wide, wide]), 5).shape == (2, 5, 5, 3)


# ---- videos ----


def test_mp4_round_trip_facts_mark_and_determinism():
    frames = grey_levels(9)
    data = encode_mp4(frames, 8, {"prompt": "a seven"})
    assert data == encode_mp4(frames, 8, {"prompt": "a seven"})
    info = probe_video(data)
    assert (info.width, info.height, info.frames, info.format, info.codec) == (48, 32, 9, "mp4", "h264")
    assert info.fps == pytest.approx(8) and info.duration == pytest.approx(9 / 8)
    assert info.mark == {"prompt": "a seven"} and probe_video(encode_mp4(frames, 8)).mark is None
    assert np.abs(decode_video(data).astype(int) - frames).max() <= 3


@pytest.mark.parametrize("shape", [(0, 32, 32, 3), (2, 31, 32, 3), (2, 32, 32)])
def test_encode_mp4_names_what_it_cannot_take(shape):
    with pytest.raises(ValueError, match="frames"):
        encode_mp4(np.zeros(shape, np.uint8), 8)


@pytest.mark.parametrize(
    "codec, format_, pix_fmt, name",
    [
        ("libx264", "mp4", "yuv420p", "mp4"),
        ("libvpx-vp9", "webm", "yuv420p", "mkv"),
        ("mpeg4", "matroska", "yuv420p", "mkv"),
        ("mpeg1video", "mpeg", "yuv420p", "mpeg"),
        ("gif", "gif", "rgb8", "gif"),
        ("mpeg4", "avi", "yuv420p", "avi"),
    ],
)
def test_containers_and_codecs(codec, format_, pix_fmt, name):
    frames = grey_levels(6, 64, 64)
    data = (
        video(frames, codec, format_, pix_fmt, rate=25)
        if codec != "gif"
        else saved(
            Image.fromarray(frames[0]),
            "GIF",
            save_all=True,
            duration=40,
            append_images=[Image.fromarray(f) for f in frames[1:]],
        )
    )
    info = probe_video(data)
    assert (info.frames, info.width, info.height, info.format) == (6, 64, 64, name)
    assert info.fps == pytest.approx(25, rel=0.02)
    decoded = decode_video(data)
    assert decoded.shape == frames.shape and np.abs(decoded.astype(int) - frames).mean() < 4


def test_odd_sizes():
    frames = grey_levels(3, 33, 47)
    assert decode_video(video(frames, "libx264", "mp4", "yuv444p")).shape == frames.shape
    assert decode_video(video(frames, "libvpx-vp9", "webm"), size=(15, 9)).shape == (3, 15, 9, 3)


def test_frames_are_chosen_by_number_or_by_time():
    data = encode_mp4(grey_levels(9), 8)
    assert numbers(decode_video(data, num_frames=3)) == [0, 4, 8]
    assert numbers(decode_video(data, num_frames=1)) == [0]
    assert numbers(decode_video(data, num_frames=17)) == np.rint(np.linspace(0, 8, 17)).astype(int).tolist()
    assert numbers(decode_video(data, fps=4)) == [0, 2, 4, 6, 8]
    assert numbers(decode_video(data, fps=4, num_frames=3, start=0.25)) == [2, 4, 6]
    assert numbers(decode_video(data, fps=8, num_frames=12)) == [*range(9), 8, 8, 8]  # the end stands still
    assert numbers(decode_video(data, fps=16, num_frames=6)) == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="fps"):
        decode_video(data, fps=0)


def test_variable_frame_rate_is_sampled_by_time_on_display():
    times = [0, 100, 200, 1000, 1100]  # the third frame stands for 0.8 s
    data = video(grey_levels(5), "libx264", "matroska", times=times, rate=1000)
    assert probe_video(data).frames == 5
    assert probe_video(data).duration == pytest.approx(1.1, abs=0.11)
    # At 0, .2, .4, .6, .8, 1.0 s: the frame whose interval holds the time.
    assert numbers(decode_video(data, fps=5, num_frames=6)) == [0, 2, 2, 2, 2, 3]
    assert numbers(decode_video(data, num_frames=5)) == [0, 1, 2, 3, 4]


def test_size_scales_to_cover_and_cuts_the_middle():
    frames = np.zeros((2, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = 255
    decoded = decode_video(encode_mp4(frames, 8, crf=1), size=16)
    assert decoded.shape == (2, 16, 16, 3) and decoded[:, :, 1:-1].mean() > 245


def rotated(data: bytes) -> bytes:
    """The mp4 with its track's display matrix set to a quarter turn (ISO/IEC 14496-12, `tkhd`)."""
    at = data.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    return data[:at] + matrix + data[at + 36 :]


def test_display_rotation_is_applied():
    frames = np.zeros((2, 32, 48, 3), np.uint8)
    frames[:, :, :24] = 255  # left half white; a quarter turn clockwise brings it to the top
    data = rotated(encode_mp4(frames, 8, crf=1))
    assert (probe_video(data).height, probe_video(data).width) == (48, 32)
    turned = decode_video(data)
    assert turned.shape == (2, 48, 32, 3)
    assert turned[:, :20].mean() > 240 and turned[:, 28:].mean() < 15
    assert decode_video(data, size=(24, 16)).shape == (2, 24, 16, 3)


def test_transparent_gif_frames_lie_on_white():
    frames = []
    for i in range(2):
        rgba = np.zeros((16, 16, 4), np.uint8)
        rgba[i * 4 : i * 4 + 4, :, :] = (255, 0, 0, 255)
        frames.append(Image.fromarray(rgba))
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=2, duration=100)
    decoded = decode_video(data)
    assert decoded[0, 15, 8].tolist() == [255, 255, 255] and decoded[1, 5, 8].tolist() == [255, 0, 0]


def test_reason_codes_of_what_is_no_video():
    assert code_of(lambda: probe_video(b"")) == "empty"
    assert code_of(lambda: probe_video(b"hello " * 100)) == "not_a_video"
    assert code_of(lambda: probe_video(encode_png(PICTURE))) == "not_a_video"
    assert code_of(lambda: probe_video(sound_only())) == "no_video_stream"
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    assert code_of(lambda: probe_video(playlist)) == "not_a_video"
    concat = b"ffconcat version 1.0\nfile /etc/passwd\n"
    assert code_of(lambda: probe_video(concat)) == "not_a_video"


def test_sound_beside_the_picture_is_ignored():
    assert probe_video(video(grey_levels(8), audio=True)).frames == 8


@pytest.mark.parametrize(
    "codec, format_", [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("mpeg4", "avi"), ("libx264", "matroska")]
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_video_is_truncated(codec, format_, share):
    noise = RNG.integers(0, 256, (12, 64, 64, 3), np.uint8)
    data = video(noise, codec, format_)
    assert probe_video(data).frames == 12
    assert code_of(lambda: probe_video(data[: int(len(data) * share)])) in ("truncated", "not_a_video")


def test_a_cut_gif_is_truncated():
    noise = [Image.fromarray(f) for f in RNG.integers(0, 256, (4, 32, 32, 3), np.uint8)]
    data = saved(noise[0], "GIF", save_all=True, append_images=noise[1:], duration=100)
    assert probe_video(data).frames == 4
    for share in (0.3, 0.6, 0.9, 0.99):
        assert code_of(lambda cut=int(len(data) * share): probe_video(data[:cut])) == "truncated"


def test_limits_on_videos():
    data = encode_mp4(grey_levels(9), 8)
    assert code_of(lambda: probe_video(data, Limits(max_pixels=100))) == "too_large"
    assert code_of(lambda: probe_video(data, Limits(max_duration=0.5))) == "too_long"
    assert code_of(lambda: probe_video(data, Limits(max_frames=4))) == "too_long"
    assert code_of(lambda: probe_video(data, Limits(max_video_pixels=8 * 48 * 32))) == "too_costly"
    with pytest.raises(ValueError, match="max_pixels"):
        Limits(max_pixels=0)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_videos_raise_nothing_but_media_error(data):
    content = bytearray(data.draw(st.sampled_from(_CLIPS)))
    for _ in range(data.draw(st.integers(1, 12))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    limits = Limits(max_pixels=1_000_000)
    for call in (
        lambda: probe_video(bytes(content), limits),
        lambda: decode_video(bytes(content), limits, num_frames=3, size=8),
        lambda: decode_video(bytes(content), limits, fps=2, num_frames=3, size=8),
    ):
        try:
            call()
        except MediaError:
            pass


_CLIPS = [encode_mp4(grey_levels(4), 8), video(grey_levels(4), "libvpx-vp9", "webm")]


def test_the_limits_are_known_without_a_decoder():
    code = "import sys, omniloom.stages.ingest.config as c; assert not {'av', 'PIL', 'numpy', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def smooth(height: int, width: int) -> np.ndarray:
    """What a photograph is like: more of the low frequencies than of the high ones."""
    coarse = np.random.default_rng(3).integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("sides", [(403, 517), (1201, 811), (640, 640), (131, 97)])
def test_a_jpeg_is_decoded_to_no_more_than_twice_what_is_needed_and_shows_the_same(sides, orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data, decoded = saved(Image.fromarray(smooth(*sides)), "JPEG", quality=92, exif=exif), []
    load = JpegImagePlugin.JpegImageFile.load
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "load", lambda image: (decoded.append(image.size), load(image))[1]
    )
    for size in ((48, 48), (64, 96)):
        decoded.clear()
        found, whole = decode_image_to(data, size), resize_center_crop(decode_image(data), size)
        assert found.shape == (*size, 3)
        upright = sides[::-1] if orientation >= 5 else sides
        scale = max(size[0] / upright[0], size[1] / upright[1])
        part = next(part for part in (8, 4, 2, 1) if part == 1 or min(sides) / part >= 2 * scale * min(sides))
        assert decoded[0] == (-(-sides[1] // part), -(-sides[0] // part))
        if part == 1:
            assert np.array_equal(found, whole)
        else:
            error = np.abs(found.astype(int) - whole.astype(int))
            assert error.mean() < 1.5 and np.percentile(error, 99) <= 8


def test_what_is_no_jpeg_is_scaled_from_all_of_its_pixels():
    for format_ in ("PNG", "WEBP"):
        data = saved(Image.fromarray(smooth(300, 400)), format_)
        assert np.array_equal(decode_image_to(data, (32, 40)), resize_center_crop(decode_image(data), (32, 40)))


def test_a_sound_upright_jpeg_comes_out_as_pillow_decodes_it():
    """It is decoded without Pillow, which does more in Python for a small one than libjpeg does for its pixels."""
    grey, colour = Image.fromarray(smooth(70, 53)).convert("L"), Image.fromarray(smooth(61, 88))
    kinds = [
        saved(picture, "JPEG", quality=quality, progressive=progressive, **more)
        for picture in (grey, colour)
        for quality, progressive in ((75, False), (92, True))
        for more in ({}, *({"subsampling": s} for s in (0, 1, 2) if picture is colour), {"restart_marker_blocks": 3})
    ]
    for data in kinds:
        for size in ((32, 32), (40, 24), (70, 53), (128, 128)):
            whole = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
            assert np.array_equal(decode_image_to(data, size, NO_LIMITS), resize_center_crop(whole, size))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_jpeg_that_xmp_alone_turns_comes_out_upright(orientation):
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    data = saved(Image.fromarray(smooth(60, 90)), "JPEG", xmp=xmp)
    assert np.array_equal(decode_image_to(data, (32, 32), NO_LIMITS), resize_center_crop(decode_image(data), (32, 32)))
    upright = (60, 90) if orientation == 3 else (90, 60)
    assert decode_image(data).shape[:2] == upright


def test_a_jpeg_in_other_colours_or_cut_short_comes_out_as_before():
    cmyk = saved(Image.fromarray(smooth(64, 64)).convert("CMYK"), "JPEG")
    rgb = saved(Image.fromarray(smooth(64, 64)), "JPEG", keep_rgb=True)
    for data in (cmyk, rgb):
        assert np.array_equal(
            decode_image_to(data, (32, 32), NO_LIMITS), resize_center_crop(decode_image(data), (32, 32))
        )
    assert code_of(lambda: decode_image_to(rgb[: len(rgb) // 2], (32, 32), NO_LIMITS)) == "truncated"
