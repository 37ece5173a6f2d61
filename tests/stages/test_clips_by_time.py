"""`clip_seconds`: long videos become clips, which hold what PyAV reads of the video in their time."""

from __future__ import annotations

import io
import json
from fractions import Fraction

import av
import numpy as np
import pytest
from ingested import listed, put, take

from omniloom.infra import storage
from omniloom.pipelines.fingerprint import canonical
from omniloom.stages.data.media import clipping
from omniloom.stages.data.media.decode import NO_LIMITS, encode_mp4
from omniloom.stages.ingest.kinds.video_folder import VideoFolderConfig
from omniloom.stages.ingest.stage import _identity


def moving(count: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """uint8 (count, height, width, 3): a bright square on its way over a ground that is another one every 20 frames."""
    grounds = []
    for scene in range(-(-count // 20)):
        coarse = np.random.default_rng((seed, scene)).integers(30, 160, (6, 8, 3))
        grounds += [np.kron(coarse, np.ones((-(-height // 6), -(-width // 8), 1)))[:height, :width]] * 20
    frames = np.stack(grounds[:count])
    for n in range(count):
        y, x = 3 * n % (height - 12), 5 * n % (width - 12)
        frames[n, y : y + 12, x : x + 12] = 230
    return frames.astype(np.uint8)


def encoded(frames: np.ndarray, times: list[int], codec: str, container: str, **metadata: str) -> bytes:
    """`times` in milliseconds."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=container) as out:
        out.metadata.update(metadata)
        stream = out.add_stream(codec, rate=25, options={"g": "20"} if codec == "libx264" else {})
        stream.codec_context.thread_count = 1  # the same bytes each time
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for array, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return sink.getvalue()


def shown(data: bytes) -> list[tuple[float, np.ndarray]]:
    """(seconds since the first frame, pixels) by PyAV alone."""
    with av.open(io.BytesIO(data)) as container:
        found = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return [(time - found[0][0], pixels) for time, pixels in found]


@pytest.mark.parametrize(
    "codec, container", [("libx264", "mp4"), ("libx264", "matroska"), ("libvpx-vp9", "webm"), ("mpeg4", "avi")]
)
def test_clips_have_the_frames_of_their_time(codec, container):
    even = container == "avi"  # which knows one rate
    steps = np.full(130, 40) if even else np.random.default_rng(1).integers(20, 70, 130)
    data = encoded(moving(130), [0, *np.cumsum(steps)[:-1].tolist()], codec, container)
    whole = shown(data)
    found = list(clipping.clips(io.BytesIO(data), 1.5, NO_LIMITS))
    assert [clip.number for clip in found] == list(range(len(found))) and len(found) >= 3
    for clip in found:
        assert clip.start == 1.5 * clip.number and clip.damaged == 0
        wanted = [(t - clip.start, p) for t, p in whole if clip.start - 1e-4 <= t < clip.start + 1.5 - 1e-4]
        got = shown(clip.data)
        assert len(got) == clip.frames == len(wanted)
        assert np.allclose([t for t, _ in got], [t - wanted[0][0] for t, _ in wanted], atol=2e-3)
        for (_, one), (_, other) in zip(got, wanted, strict=True):
            assert np.abs(one.astype(int) - other).mean() < 4
    assert sum(clip.frames for clip in found) == len(whole)
    again = list(clipping.clips(io.BytesIO(data), 1.5, NO_LIMITS))
    assert again == found  # byte by byte


def test_odd_sides_stay_and_a_clip_is_there_before_the_file_is_read():
    noise = np.random.default_rng(2).integers(0, 256, (200, 64, 96, 3), np.uint8)
    data = encoded(noise, list(range(0, 8000, 40)), "mpeg4", "matroska")
    file, largest = io.BytesIO(data), 0
    for number, clip in enumerate(clipping.clips(file, 1.0, NO_LIMITS)):
        largest = max(largest, len(clip.data))
        if number == 1:
            assert file.tell() < 0.6 * len(data)
    assert 0 < largest < len(data)
    odd = io.BytesIO()
    with av.open(odd, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 33, 47, "yuv444p"
        for array in moving(30, 33, 47):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        out.mux(stream.encode())
    clips = list(clipping.clips(io.BytesIO(odd.getvalue()), 1.0, NO_LIMITS))
    assert [clip.frames for clip in clips] == [10, 10, 10]
    assert {pixels.shape for clip in clips for _, pixels in shown(clip.data)} == {(33, 47, 3)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    long = encode_mp4(moving(100, seed=1), 10)
    return put(
        tmp_path_factory.mktemp("videos"),
        {
            "a/long.mp4": long,
            "a/short.mp4": encode_mp4(moving(20, seed=2), 10),
            "other.mp4": encode_mp4(moving(75, seed=3), 10),
            "made.mp4": encode_mp4(moving(60, seed=4), 10, mark={"model": "ours"}),
            "cut.mp4": long[: len(long) // 2],
            "metadata.jsonl": "".join(
                json.dumps({"file_name": name, "caption": f"about {name}", "group": group}) + "\n"
                for name, group in (("a/long.mp4", "g"), ("a/short.mp4", "h"))
            ),
        },
    )


def test_each_clip_is_a_record_with_its_start_and_length(folder):
    source = {"kind": "video_folder", "uri": folder, "clip_seconds": 3}
    metrics, rows, rejects = take(source, max_synthetic_fraction=0.5)
    parts = {path: sorted(part for name, part in rows if name == path) for path, _ in rows}
    assert parts == {"a/long.mp4": [0, 1, 2, 3], "a/short.mp4": [0], "other.mp4": [0, 1, 2], "made.mp4": [0, 1]}
    for (path, part), row in rows.items():
        cut = path != "a/short.mp4"
        meta = json.loads(row["meta"])
        assert meta.get("start") == (3.0 * part if cut else None)
        assert row["duration"] == pytest.approx(
            {("a/long.mp4", 3): 1.0, ("other.mp4", 2): 1.5}.get((path, part), 3.0 if cut else 2.0), abs=0.01
        )
        assert row["synthetic"] == (path == "made.mp4")
        assert row["captions"] == ([f"about {path}"] if path.startswith("a/") else [])
    assert rows["a/short.mp4", 0]["media"] == storage.read_bytes(f"{folder}/a/short.mp4")
    assert [code for _, code in rejects] == ["truncated"]


def test_clips_of_a_video_lie_in_one_split_and_do_not_depend_on_how_the_work_is_cut(tmp_path):
    files = {f"{n}.mp4": encode_mp4(moving(40, seed=n + 10), 10) for n in range(8)}
    source = {"kind": "video_folder", "uri": put(tmp_path, files), "clip_seconds": 2}
    splits = {"train": 0.5, "validation": 0.25, "test": 0.25}
    made = [listed(source, splits=splits, **cut)[1] for cut in ({}, {"shard_items": 2}, {"shard_bytes": 1})]
    assert made[0] == made[1] == made[2] and len(made[0]) == 16
    lies = {path: {row["split"] for row in made[0] if row["path"] == path} for path in files}
    assert all(len(found) == 1 for found in lies.values())
    assert len(set().union(*lies.values())) > 1


def test_limits_are_those_of_a_clip(tmp_path):
    put(tmp_path, {"v.mkv": encoded(moving(200, seed=7), list(range(0, 8000, 40)), "libx264", "matroska")})
    source = {"kind": "video_folder", "uri": str(tmp_path)}
    _, rows, rejects = take({**source, "clip_seconds": 2}, limits={"max_frames": 60})
    assert [part for _, part in rows] == [0, 1, 2, 3] and not rejects  # of 50 frames each
    sizes = [len(row["media"]) for row in rows.values()]
    _, rows, rejects = take({**source, "clip_seconds": 2}, limits={"max_bytes": sorted(sizes)[2]})
    assert len(rows) == 3 and "the clip from" in rejects["v.mkv", "too_large"]


def test_damage_costs_its_clip(tmp_path):
    data = encoded(moving(200, seed=8), list(range(0, 8000, 40)), "libx264", "matroska")
    bad = bytearray(data)
    with av.open(io.BytesIO(data)) as container:  # a picture that others refer to: decoders notice nothing in the rest
        key = next(packet for packet in container.demux(video=0) if packet.is_keyframe and packet.pts >= 4000)
        middle = key.pos + key.size // 2
    bad[middle : middle + 40] = bytes(range(40))
    put(tmp_path, {"v.mkv": bytes(bad)})
    _, rows, rejects = take({"kind": "video_folder", "uri": str(tmp_path), "clip_seconds": 1})
    assert 5 <= len(rows) < 8 and {code for _, code in rejects} == {"corrupt"}


def test_a_source_without_it_is_what_it_was():
    plain = VideoFolderConfig(kind="video_folder", uri="/v")
    assert "clip_seconds" not in canonical(plain)
    assert canonical(plain.model_copy(update={"clip_seconds": 2.0}))["clip_seconds"] == 2.0

    class One:
        sources = [plain]
        source_name = staticmethod(lambda index: "v")

    assert "clip_seconds" not in _identity(One, 0)
