"""Frames of a video are those a player shows, and damage is noticed: closed forms, and ffmpeg where it is installed.

The clips are made here, frame i of grey level 20 + 10 i, and then changed byte by byte.
"""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from omniloom.stages.data.media.decode import Limits, MediaError, decode_video, probe_video, resize_center_crop

VIDEOS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "videos"
FFMPEG = pytest.mark.skipif(not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="ffmpeg is not installed")


def encoded(
    frames: np.ndarray,
    codec="libx264",
    format_="mp4",
    pix_fmt="yuv420p",
    rate=8,
    *,
    source="rgb24",
    aspect=None,
    container_options=None,
    metadata=None,
    **options,
) -> bytes:
    """A clip of `frames`, uint8 (T, H, W, channels of `source`)."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=format_, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        stream.codec_context.thread_count = 1  # the same bytes each time
        stream.options = {
            name.replace("_", "-") if codec == "libx264" else name: value for name, value in options.items()
        }
        stream.metadata.update(metadata or {})
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=source)))
        container.mux(stream.encode())
    return sink.getvalue()


def levels(count: int, height=32, width=48) -> np.ndarray:
    return np.stack([np.full((height, width, 3), 20 + 10 * i, np.uint8) for i in range(count)])


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 20) / 10) for frame in frames]


def noise(count: int, height=64, width=96) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (count, height // 8, width // 8, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in small])


def refusal(call) -> MediaError:
    with pytest.raises(MediaError) as caught:
        call()
    return caught.value


# ---- edit lists ----


def trimmed(data: bytes, skip: int, keep: int, rate: int) -> bytes:
    """The mp4 with its edit list (one entry, `elst` version 0) set to show `keep` frames from number `skip` on."""
    at = data.index(b"elst") + 12
    _, media_time, speed = struct.unpack(">IiI", data[at : at + 12])
    moov = data.index(b"mvhd") + 16
    movie_scale = struct.unpack(">I", data[moov : moov + 4])[0]
    track = data.index(b"mdhd") + 16
    scale = struct.unpack(">I", data[track : track + 4])[0]
    entry = struct.pack(">IiI", keep * movie_scale // rate, media_time + skip * scale // rate, speed)
    return data[:at] + entry + data[at + 12 :]


@pytest.mark.parametrize(
    "skip, keep, group", [(8, 12, 250), (1, 19, 250), (15, 5, 250), (0, 7, 250), (5, 9, 250), (2, 6, 4), (9, 5, 4)]
)
def test_an_edit_list_hides_frames_and_the_rest_is_counted_and_chosen(skip, keep, group):
    data = trimmed(encoded(levels(20), g=str(group), bf="2"), skip, keep, 8)
    info = probe_video(data)
    assert info.frames == keep and info.duration == pytest.approx(keep / 8) and info.fps == pytest.approx(8)
    assert numbers(decode_video(data)) == list(range(skip, skip + keep))
    assert numbers(decode_video(data, num_frames=3)) == (skip + np.rint(np.linspace(0, keep - 1, 3))).tolist()
    assert numbers(decode_video(data, num_frames=3, total=keep)) == numbers(decode_video(data, num_frames=3))
    assert numbers(decode_video(data, fps=4, num_frames=2)) == [skip, skip + 2]
    for share in (0.4, 0.8, 0.97):
        assert refusal(lambda: probe_video(data[: int(len(data) * share)])).code == "truncated"  # noqa: B023


def test_hidden_frames_cost_what_shown_ones_cost():
    data = trimmed(encoded(levels(20), g="250", bf="0"), 15, 5, 8)
    cost = 20 * 32 * 48
    assert probe_video(data, Limits(max_video_pixels=cost, max_frames=5)).frames == 5
    assert refusal(lambda: probe_video(data, Limits(max_video_pixels=cost - 1))).code == "too_costly"
    assert refusal(lambda: probe_video(data, Limits(max_frames=4))).code == "too_long"


# ---- what a pixel is ----


@pytest.mark.parametrize(
    "codec, format_, aspect",
    [
        ("libx264", "mp4", Fraction(4, 3)),
        ("libx264", "mp4", Fraction(8, 9)),
        ("libx264", "matroska", Fraction(8, 9)),
        ("mpeg2video", "mpeg", Fraction(4, 3)),
    ],
)
def test_pixels_are_square(codec, format_, aspect):
    frames = np.zeros((8, 48, 64, 3), np.uint8)
    frames[:, :, 32:] = 240
    data = encoded(frames, codec, format_, rate=25, aspect=aspect)
    width = round(64 * aspect)
    info = probe_video(data)
    assert (info.width, info.height) == (width, 48)
    shown = decode_video(data)
    assert shown.shape == (8, 48, width, 3)
    assert shown[:, :, : width // 2 - 3].mean() < 12 and shown[:, :, width // 2 + 3 :].mean() > 228
    np.testing.assert_array_equal(decode_video(data, size=(30, width * 30 // 48)).shape, (8, 30, width * 30 // 48, 3))


@pytest.mark.parametrize(
    "a, b, c, d, expected",
    [
        (1, 0, 0, 1, lambda f: f),
        (-1, 0, 0, 1, lambda f: f[:, :, ::-1]),
        (1, 0, 0, -1, lambda f: f[:, ::-1]),
        (-1, 0, 0, -1, lambda f: f[:, ::-1, ::-1]),
        (0, 1, -1, 0, lambda f: np.rot90(f, -1, (1, 2))),
        (0, -1, 1, 0, lambda f: np.rot90(f, 1, (1, 2))),
        (0, 1, 1, 0, lambda f: f.transpose(0, 2, 1, 3)),
        (0, -1, -1, 0, lambda f: np.rot90(f, 2, (1, 2)).transpose(0, 2, 1, 3)),
    ],
)
def test_the_display_matrix_turns_and_mirrors(a, b, c, d, expected):
    """(x, y) is shown at (ax + cy, bx + dy), moved into sight (ISO/IEC 14496-12, `tkhd`)."""
    frames = np.zeros((2, 32, 48, 3), np.uint8)
    frames[:, :16, :24], frames[:, :16, 24:], frames[:, 16:, :24] = 250, 160, 80
    plain = encoded(frames, crf="1")
    at = plain.index(b"tkhd") + 44
    data = plain[:at] + struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30) + plain[at + 36 :]
    shown, upright = decode_video(data), expected(decode_video(plain))
    np.testing.assert_array_equal(shown, upright)
    info = probe_video(data)
    assert (info.height, info.width) == upright.shape[1:3]
    for size in ((12, 20), 9):
        np.testing.assert_array_equal(decode_video(data, size=size), resize_center_crop(upright, size))


def test_a_size_is_cut_out_before_scaling_as_of_a_picture():
    data = encoded(noise(3))
    whole = decode_video(data)
    for size in (16, (20, 7), (200, 30)):
        np.testing.assert_array_equal(decode_video(data, size=size), resize_center_crop(whole, size))


@pytest.mark.parametrize(
    "codec, format_, pix_fmt, metadata",
    [
        ("prores_ks", "mov", "yuva444p10le", {}),
        ("qtrle", "mov", "argb", {}),
        ("png", "mov", "rgba", {}),
        ("ffv1", "matroska", "yuva420p", {}),
        ("ffv1", "matroska", "yuva444p16le", {}),
        ("libvpx-vp9", "webm", "yuva420p", {"alpha_mode": "1"}),
        ("libvpx", "webm", "yuva420p", {"alpha_mode": "1"}),
    ],
)
def test_transparency_of_every_depth_lies_on_white(codec, format_, pix_fmt, metadata):
    frames = np.zeros((2, 32, 48, 4), np.uint8)
    frames[..., 0] = 200
    frames[:, :, 16:32, 3], frames[:, :, 32:, 3] = 128, 255  # clear, half, solid
    options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
    shown = decode_video(encoded(frames, codec, format_, pix_fmt, source="rgba", metadata=metadata, **options))
    for columns, expected in (
        (slice(2, 14), (255, 255, 255)),
        (slice(18, 30), (227, 127, 127)),
        (slice(34, 46), (200, 0, 0)),
    ):
        assert np.abs(shown[:, 8:24, columns].mean((0, 1, 2)) - expected).max() < 8


# ---- damage ----


def flipped(data: bytes, count: int, seed: int) -> bytes:
    """`count` bytes of coded pictures turned over, in the middle half of the clip."""
    with av.open(io.BytesIO(data)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size and packet.pos is not None]
    damaged, rng = bytearray(data), np.random.default_rng(seed)
    for number in rng.integers(len(packets) // 4, len(packets) * 3 // 4, count):
        packet = packets[number]
        damaged[packet.pos + int(rng.integers(packet.size // 3, packet.size))] ^= 0xFF
    return bytes(damaged)


@pytest.mark.parametrize(
    "codec, format_, pix_fmt",
    [
        ("libx264", "mp4", "yuv420p"),
        ("libx264", "mpegts", "yuv420p"),
        ("mpeg4", "avi", "yuv420p"),
        ("mpeg2video", "mpeg", "yuv420p"),
        ("prores_ks", "mov", "yuv422p10le"),
        ("ffv1", "matroska", "yuv420p"),
        ("flv", "flv", "yuv420p"),
        ("mjpeg", "avi", "yuvj420p"),
        ("gif", "gif", "rgb8"),
    ],
)
def test_bit_rot_is_noticed(codec, format_, pix_fmt):
    data = encoded(noise(20), codec, format_, pix_fmt, rate=25)
    assert probe_video(data).frames == 20
    for seed in range(3):  # the same file is judged the same, however often its errors were met before
        assert refusal(lambda: probe_video(flipped(data, 40, seed))).code == "corrupt"  # noqa: B023


def test_damage_reaches_to_the_next_frame_that_stands_by_itself():
    data = bytearray(encoded(noise(20), g="5", bf="0", x264_params="keyint=5:min-keyint=5:scenecut=0"))
    with av.open(io.BytesIO(bytes(data))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [i for i, packet in enumerate(packets) if packet.is_keyframe] == [0, 5, 10, 15]
    middle = packets[12].pos + packets[12].size // 2
    data[middle : middle + 12] = bytes(255 - byte for byte in data[middle : middle + 12])
    error = refusal(lambda: probe_video(bytes(data)))
    assert error.code == "corrupt" and "3 of 20 frames" in error.message  # numbers 12, 13 and 14
    assert refusal(lambda: probe_video(bytes(data), Limits(max_corrupt_fraction=0.149))).code == "corrupt"
    assert probe_video(bytes(data), Limits(max_corrupt_fraction=0.15)).frames == 20


def test_packets_lost_on_the_way_are_noticed():
    data = encoded(noise(50), format_="mpegts", rate=25)
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    lost = b"".join(packet for i, packet in enumerate(packets) if not len(packets) // 3 < i < len(packets) // 2)
    assert probe_video(data).frames == 50
    assert refusal(lambda: probe_video(lost)).code == "corrupt"


@pytest.mark.parametrize(
    "codec, format_, options",
    [("wmv2", "asf", {}), ("libvpx", "ogg", {}), ("libx264", "matroska", {"live": "1"}), ("flv", "flv", {})],
)
def test_a_cut_is_noticed_where_the_container_states_its_lengths(codec, format_, options):
    data = encoded(noise(30), codec, format_, rate=25, container_options=options)
    assert probe_video(data).frames == 30
    for share in (0.35, 0.7, 0.98):
        assert refusal(lambda: probe_video(data[: int(len(data) * share)])).code in ("truncated", "corrupt")  # noqa: B023


def test_a_trailer_that_is_no_box_is_not_taken_for_a_cut():
    assert probe_video(encoded(levels(4)) + b"\xff\xfe\x01\x02" * 20).frames == 4


# ---- ffmpeg's opinion ----


def ffmpeg(*arguments) -> bytes:
    return subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], capture_output=True, check=True).stdout


def count_of(path) -> int:
    out = subprocess.run(
        [
            "ffprobe",
            "-v",
            "error",
            "-count_frames",
            "-select_streams",
            "v:0",
            "-show_entries",
            "stream=nb_read_frames",
            "-of",
            "json",
            str(path),
        ],
        capture_output=True,
        check=True,
    ).stdout
    return int(json.loads(out)["streams"][0]["nb_read_frames"])


@FFMPEG
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "ts", "avi"])
def test_a_copied_cut_shows_ffmpegs_frames(tmp_path, suffix):
    (tmp_path / "whole.mp4").write_bytes(encoded(noise(60), rate=25, g="24", bf="2"))
    cut = tmp_path / f"cut.{suffix}"
    ffmpeg("-ss", "0.9", "-i", tmp_path / "whole.mp4", "-c", "copy", cut)
    shown = decode_video(cut.read_bytes())
    raw = ffmpeg("-i", cut, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    expected = np.frombuffer(raw, np.uint8).reshape(-1, 64, 96, 3).astype(int)
    assert probe_video(cut.read_bytes()).frames == count_of(cut) == len(expected) == len(shown)
    assert np.abs(shown - expected).mean() < 1


@FFMPEG
@pytest.mark.slow
@pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"the sample corpus is not at {VIDEOS}")
def test_every_clip_of_the_sample_corpus_can_be_cut_and_taken(tmp_path):
    files = sorted(VIDEOS.rglob("*.mp4"))
    for file in files:
        with av.open(str(file)) as container:
            start = 0.37 * container.duration / av.time_base
        cut = tmp_path / "cut.mp4"
        ffmpeg("-ss", f"{start:.3f}", "-i", file, "-c", "copy", cut)
        data = cut.read_bytes()
        assert probe_video(data).frames == count_of(cut), file
        assert refusal(lambda: probe_video(data[: len(data) // 2])).code == "truncated", file  # noqa: B023
    assert len(files) == 65
