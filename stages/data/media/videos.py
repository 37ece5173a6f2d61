"""Videos: encoded bytes to RGB frames and back, with PyAV.

In: the bytes of a file and `Limits`. Out: uint8 (T, H, W, 3): the frames that a player shows, upright, with square
pixels, scaled and cropped while decoding. A file that cannot be used raises `MediaError`; no other exception leaves.
MPEG program and transport streams say nothing of their length: of a cut one the frames that are left are taken.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from omniloom.stages.data.media.identity import ClipIdentity
from omniloom.stages.data.media.limits import (
    DEFAULT_LIMITS,
    MARK,
    Limits,
    MediaError,
    check_array,
    check_shape,
    parse_mark,
)
from omniloom.stages.data.media.video_pixels import display_size, displayed
from omniloom.stages.data.media.video_stream import VideoStream, opened

# One thread does not make x264 repeat itself: with its macroblock tree on, small clips now and then came out otherwise
# from one process to the next. `cpu-independent` is to keep machines alike.
X264 = {"crf": "18", "threads": "1", "preset": "veryfast", "x264-params": "mbtree=0:cpu-independent=1"}


@dataclass(frozen=True)
class VideoInfo:
    """`width` and `height` as displayed, `frames` those shown; `fps` is the mean over the whole clip, `duration` in
    seconds reaches to the end of the last frame.
    """

    width: int
    height: int
    frames: int
    fps: float
    duration: float
    format: str
    codec: str
    mark: Any = None
    identity: str = ""  # of the frames, as `stages.data.media.identity` has it; their look
    look: bytes = b""


def probe_video(data: bytes, limits: Limits = DEFAULT_LIMITS) -> VideoInfo:
    """What the video is, found by decoding every frame: a truncated or damaged one raises."""
    with opened(data, limits, checked=True) as video:
        size, clip = None, ClipIdentity()
        for frame in video.frames():
            clip.add(frame)
            if size is None:
                size = display_size(frame, video.pixel_aspect)
                check_shape(size[1], size[0], limits)
        video.check_sound()
        if size is None:
            raise MediaError("truncated", "no frame could be decoded")
        duration = video.duration
        if not video.step and video.stream.average_rate:  # one frame without a length
            duration += 1.0 / float(video.stream.average_rate)
        fps = video.shown / duration if duration > 0 else 0.0
        return VideoInfo(
            size[1],
            size[0],
            video.shown,
            fps,
            duration,
            _container_name(video.container),
            video.stream.codec.name,
            video_mark(video.container),
            clip.identity(),
            clip.look(),
        )


def decode_video(
    data: bytes,
    limits: Limits = DEFAULT_LIMITS,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    size: int | tuple[int, int] | None = None,
    total: int | None = None,
) -> np.ndarray:
    """Frames as uint8 (T, H, W, 3).

    With `fps`, frame k is the one on display `start` + k/`fps` seconds after the first frame, whatever the
    clip's own rate; `num_frames` of them (the last frame stands still where the clip ends sooner), or as many
    as the clip has. Without `fps`, `num_frames` spread evenly from the first frame to the last by number;
    without both, every frame. `total` is how many frames the clip shows, where that is known; else they are counted
    first. `size` (a side, or (height, width)) scales to cover and cuts the middle while decoding, so that large
    frames are never held.
    """
    if num_frames is not None and num_frames < 1 or fps is not None and fps <= 0 or start < 0:
        raise ValueError(f"decode_video: num_frames={num_frames}, fps={fps}, start={start}: expected positive values")
    chosen = None
    if fps is None and num_frames is not None:
        total = total or _count_frames(data, limits)
        chosen = np.rint(np.linspace(0, total - 1, num_frames)).astype(int)
    with opened(data, limits) as video:
        picture = _pictures(video, size)
        if fps is not None:
            out = _sample_by_time(video.frames(), picture, fps, start, num_frames)
        else:
            out = _sample_by_number(video.frames(), picture, chosen)
        return np.stack(out)


def encode_mp4(frames: np.ndarray, fps: float, mark: Any = None, crf: int = 18) -> bytes:
    """uint8 (T, H, W, 3), even H and W, as H.264 in mp4; `mark` (JSON-able) goes into the comment tag.

    Equal frames give equal bytes, which identities by content rely on.
    """
    check_array("frames", frames, 4)
    if len(frames) == 0 or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"encode_mp4: frames of shape {frames.shape}: expected some, of even height and width")
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        if mark is not None:
            container.metadata["comment"] = f"{MARK} {json.dumps(mark, ensure_ascii=False)}"
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(60000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {**X264, "crf": str(crf)}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


def _count_frames(data: bytes, limits: Limits) -> int:
    with opened(data, limits) as video:
        return sum(1 for _ in video.frames())


def _pictures(video: VideoStream, size: int | tuple[int, int] | None) -> Callable[[av.VideoFrame], np.ndarray]:
    """What makes an array of a frame. All have the size of the first; all that are held together stay below 2 GiB."""
    whole = None
    left = 2 << 30

    def picture(frame: av.VideoFrame) -> np.ndarray:
        nonlocal whole, left
        whole = whole or display_size(frame, video.pixel_aspect)
        height, width = whole if size is None else (size, size) if isinstance(size, int) else size
        left -= height * width * 3
        if left < 0:
            raise MediaError("too_large", "over 2 GiB of decoded frames: ask for a size or fewer frames")
        return displayed(frame, video.pixel_aspect, size, whole)

    return picture


def _sample_by_number(frames: Iterator, picture: Callable, chosen: np.ndarray | None) -> list[np.ndarray]:
    """Every frame, or those whose numbers `chosen` lists in rising order (a number may repeat)."""
    out: list[np.ndarray] = []
    for number, frame in enumerate(frames):
        wanted = 1 if chosen is None else int(np.count_nonzero(chosen == number))
        if wanted:
            out.extend([picture(frame)] * wanted)
        if chosen is not None and number >= chosen[-1]:
            break
    if chosen is not None:  # a damaged clip may give fewer frames than were counted when it was accepted
        out += out[-1:] * (len(chosen) - len(out))
    return out


def _sample_by_time(
    frames: Iterator, picture: Callable, fps: float, start: float, num_frames: int | None
) -> list[np.ndarray]:
    """The frame on display at each of the times start + k / fps."""
    out: list[np.ndarray] = []
    first = previous = None
    shown_until = 0.0
    half_tick = 1e-6

    def fill(until: float) -> None:
        array = None
        while (num_frames is None or len(out) < num_frames) and start + len(out) / fps < until - half_tick:
            array = picture(previous) if array is None else array
            out.append(array)

    for frame in frames:
        moment = shown_until if frame.time is None else float(frame.time)
        first = moment if first is None else first
        if previous is not None:
            fill(moment - first)
        previous, shown_until = frame, moment + (float(frame.duration * frame.time_base) if frame.duration else 0.0)
        if num_frames is not None and len(out) == num_frames:
            return out
    if previous is None or first is None:
        raise MediaError("truncated", "no frame could be decoded")
    fill(max(shown_until - first, half_tick * 2))
    if not out or num_frames is not None and len(out) < num_frames:
        out.extend([picture(previous)] * ((num_frames or 1) - len(out)))
    return out


def _container_name(container) -> str:
    """One short name: mp4 for the whole mov family, webm or mkv by what the header says."""
    name = container.format.name
    if "mp4" in name:
        return "mp4"
    return "mkv" if "matroska" in name else name.split(",")[0]


def video_mark(container) -> Any:
    """What the comment of a video that a model of this project made says; None without one."""
    for key, value in container.metadata.items():
        if key.lower() in ("comment", "description") and value.startswith(MARK):
            return parse_mark(value.removeprefix(MARK).strip())
    return None
