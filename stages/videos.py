"""Videos: encoded bytes to RGB frames and back, with PyAV.

In: the bytes of a file and `Limits`. Out: uint8 (T, H, W, 3), upright, scaled and cropped while decoding. A
file that cannot be used raises `MediaError`; no other exception leaves. An MPEG program stream says nothing
of its length: of a cut one the frames that are left are taken.
"""
from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from stages import containers
from stages.identity import ClipIdentity
from stages.images import center_crop, cover
from stages.limits import (
    DECODE_ERRORS,
    DEFAULT_LIMITS,
    MARK,
    Limits,
    MediaError,
    check_array,
    check_bytes,
    one_line,
    parse_mark,
)


@dataclass(frozen=True)
class VideoInfo:
    """`fps` is the mean over the whole clip, `duration` in seconds reaches to the end of the last frame."""

    width: int
    height: int
    frames: int
    fps: float
    duration: float
    format: str
    codec: str
    mark: Any = None
    identity: str = ""  # of the frames, as `stages.identity` has it; their look
    look: bytes = b""


def probe_video(data: bytes, limits: Limits = DEFAULT_LIMITS) -> VideoInfo:
    """What the video is, found by decoding every frame: a truncated one raises."""
    started = time.monotonic()
    with _opened(data, limits) as container:
        stream = _video_stream(container)
        first = last = None
        step = 0.0
        count = 0
        clip = ClipIdentity()
        for frame in _frames(container, stream, limits, started):
            clip.add(frame)
            if first is None:
                first, size = _time_of(frame, 0.0), _display_size(frame)
                last = first
            moment = _time_of(frame, last)
            step = _length_of(frame) or (moment - last if moment > last else step)
            last = max(last, moment)
            count += 1
        if not count:
            raise MediaError("truncated", "no frame could be decoded")
        duration = last - first + (step or (1.0 / float(stream.average_rate) if stream.average_rate else 0.0))
        _check_complete(container, stream, count, last + step)
        fps = count / duration if duration > 0 else 0.0
        mark = _video_mark(container)
        return VideoInfo(
            size[1], size[0], count, fps, duration, _container_name(container), stream.codec.name, mark,
            clip.identity(), clip.look()
        )


def decode_video(
    data: bytes,
    limits: Limits = DEFAULT_LIMITS,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    start: float = 0.0,
    size: int | tuple[int, int] | None = None,
) -> np.ndarray:
    """Frames as uint8 (T, H, W, 3).

    With `fps`, frame k is the one on display `start` + k/`fps` seconds after the first frame, whatever the
    clip's own rate; `num_frames` of them (the last frame stands still where the clip ends sooner), or as many
    as the clip has. Without `fps`, `num_frames` spread evenly from the first frame to the last by number;
    without both, every frame. `size` (a side, or (height, width)) scales to cover and cuts the middle while
    decoding, so that large frames are never held.
    """
    if num_frames is not None and num_frames < 1 or fps is not None and fps <= 0 or start < 0:
        raise ValueError(
            f"decode_video: num_frames={num_frames}, fps={fps}, start={start}: expected positive values"
        )
    started = time.monotonic()
    chosen = None
    if fps is None and num_frames is not None:
        total = _count_frames(data, limits, started)
        chosen = np.rint(np.linspace(0, total - 1, num_frames)).astype(int)
    with _opened(data, limits) as container:
        stream = _video_stream(container)
        frames = _frames(container, stream, limits, started)
        if fps is not None:
            out = _sample_by_time(frames, fps, start, num_frames, size, limits)
        else:
            out = _sample_by_number(frames, chosen, size, limits)
    if not out:
        raise MediaError("truncated", "no frame could be decoded")
    return np.stack(out)


def encode_mp4(frames: np.ndarray, fps: float, mark: Any = None, crf: int = 18) -> bytes:
    """uint8 (T, H, W, 3), even H and W, as H.264 in mp4; `mark` (JSON-able) goes into the comment tag.

    Equal frames give equal bytes, which identities by content rely on.
    """
    check_array("frames", frames, 4)
    if len(frames) == 0 or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(
            f"encode_mp4: frames of shape {frames.shape}: expected some, of even height and width"
        )
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        if mark is not None:
            container.metadata["comment"] = f"{MARK} {json.dumps(mark, ensure_ascii=False)}"
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(60000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread does not make x264 repeat itself: with its macroblock tree on, small clips now and then
        # came out otherwise from one process to the next. `cpu-independent` is to keep machines alike.
        stream.options = {"crf": str(crf), "threads": "1", "preset": "veryfast",
                          "x264-params": "mbtree=0:cpu-independent=1"}
        for array in frames:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24"))
            )
        container.mux(stream.encode())
    return sink.getvalue()


class _opened:
    """A container over bytes; whatever libav raises inside the block leaves as MediaError."""

    def __init__(self, data: bytes, limits: Limits):
        self.data, self.limits = data, limits

    def __enter__(self):
        check_bytes(self.data, self.limits)
        try:
            # The custom reader gives libav these bytes and no other file: a playlist cannot name one.
            self.container = av.open(
                io.BytesIO(self.data),
                "r",
                metadata_errors="replace",
                options={"protocol_whitelist": "", "format_whitelist": _DEMUXERS},
            )
        except (av.error.FFmpegError, *DECODE_ERRORS) as error:
            code = "truncated" if containers.looks_like_video(self.data) else "not_a_video"
            raise MediaError(code, one_line(error)) from None
        if (promised := containers.promised_bytes(self.data)) and promised > len(self.data):
            self.container.close()
            raise MediaError("truncated", f"{len(self.data)} of {promised} bytes")
        return self.container

    def __exit__(self, kind, error, _trace):
        self.container.close()
        if error is None or isinstance(error, MediaError):
            return
        if isinstance(error, av.error.FFmpegError) or isinstance(error, DECODE_ERRORS):
            raise MediaError("corrupt", one_line(error)) from None


# Audio is opened too, to be told from garbage; nothing here reads a list of other files.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,gif,flv,asf,ogg,apng,wav,mp3,flac,aac"
)


def _video_stream(container):
    streams = [
        s
        for s in container.streams.video
        if not (int(s.disposition) & int(av.stream.Disposition.attached_pic))
    ]  # an album cover is no video
    if not streams:
        found = sorted({s.type for s in container.streams}) or ["nothing"]
        raise MediaError("no_video_stream", f"holds {', '.join(found)}")
    stream = streams[0]
    stream.thread_type = "AUTO"
    return stream


def _frames(container, stream, limits: Limits, started: float) -> Iterator:
    """Decoded frames in display order, each checked against the limits."""
    if stream.codec_context is None:
        raise MediaError("unsupported", "no decoder for this codec")
    if (
        stream.duration
        and stream.time_base
        and float(stream.duration * stream.time_base) > limits.max_duration
    ):
        raise MediaError(
            "too_long", f"{float(stream.duration * stream.time_base):.1f} s, at most {limits.max_duration}"
        )
    context = stream.codec_context
    if context.width * context.height > limits.max_pixels:
        raise MediaError(
            "too_large", f"{context.width}x{context.height} pixels, at most {limits.max_pixels} in all"
        )
    first = None
    for count, frame in enumerate(container.decode(stream), 1):
        if frame.width * frame.height > limits.max_pixels:
            raise MediaError(
                "too_large", f"{frame.width}x{frame.height} pixels, at most {limits.max_pixels} in all"
            )
        if time.monotonic() - started > limits.decode_seconds:
            raise MediaError("timeout", f"decoding took over {limits.decode_seconds} s")
        moment = _time_of(frame, 0.0)
        first = moment if first is None else first
        if count > limits.max_frames or moment - first > limits.max_duration:
            raise MediaError("too_long", f"over {limits.max_frames} frames or {limits.max_duration} s")
        yield frame


def _time_of(frame, default: float) -> float:
    return default if frame.time is None else float(frame.time)


def _length_of(frame) -> float:
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0


def _display_size(frame) -> tuple[int, int]:
    """(height, width) after the display matrix is applied."""
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def _to_array(frame, size: int | tuple[int, int] | None) -> np.ndarray:
    """uint8 (H, W, 3) of a frame: scaled and cropped to `size`, transparency on white, upright."""
    turned = frame.rotation % 180 != 0
    height, width = frame.height, frame.width
    if size is not None:
        target_h, target_w = (size, size) if isinstance(size, int) else size
        if turned:
            target_h, target_w = target_w, target_h
        height, width = cover(height, width, target_h, target_w)
    alpha = frame.format.name in (
        "bgra",
        "rgba",
        "argb",
        "abgr",
        "yuva420p",
        "yuva422p",
        "yuva444p",
        "pal8",
        "ya8",
    )
    array = frame.reformat(
        width,
        height,
        format="rgba" if alpha else "rgb24",
        interpolation=av.video.reformatter.Interpolation.AREA,
    ).to_ndarray()
    if alpha:
        opacity = array[..., 3:].astype(np.uint16)
        array = ((array[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    if size is not None:
        array = center_crop(array, target_h, target_w)
    return np.ascontiguousarray(np.rot90(array, round(frame.rotation / 90) % 4)) if frame.rotation else array


def _sample_by_number(frames: Iterator, chosen: np.ndarray | None, size, limits: Limits) -> list[np.ndarray]:
    """Every frame, or those whose numbers `chosen` lists in rising order (a number may repeat)."""
    out: list[np.ndarray] = []
    budget = _Budget(limits)
    for number, frame in enumerate(frames):
        wanted = 1 if chosen is None else int(np.count_nonzero(chosen == number))
        if wanted:
            array = budget.take(_to_array(frame, size))
            out.extend([array] * wanted)
        if chosen is not None and number >= chosen[-1]:
            break
    while (
        out and chosen is not None and len(out) < len(chosen)
    ):  # the header promised more frames than there are
        out.append(out[-1])
    return out


def _sample_by_time(
    frames: Iterator, fps: float, start: float, num_frames: int | None, size, limits: Limits
) -> list[np.ndarray]:
    """The frame on display at each of the times start + k / fps."""
    out: list[np.ndarray] = []
    budget = _Budget(limits)
    first = previous = None
    shown_until = 0.0
    half_tick = 1e-6

    def fill(until: float) -> None:
        array = None
        while (num_frames is None or len(out) < num_frames) and start + len(out) / fps < until - half_tick:
            array = budget.take(_to_array(previous, size)) if array is None else array
            out.append(array)

    for frame in frames:
        moment = _time_of(frame, shown_until)
        first = moment if first is None else first
        if previous is not None:
            fill(moment - first)
        previous, shown_until = frame, moment + _length_of(frame)
        if num_frames is not None and len(out) == num_frames:
            return out
    if previous is not None:
        fill(max(shown_until - first, half_tick * 2))
        if not out or num_frames is not None and len(out) < num_frames:
            out.extend([budget.take(_to_array(previous, size))] * ((num_frames or 1) - len(out)))
    return out


class _Budget:
    """Decoded frames held at once stay below 2 GiB."""

    def __init__(self, limits: Limits):
        self.left = 2 << 30

    def take(self, array: np.ndarray) -> np.ndarray:
        self.left -= array.nbytes
        if self.left < 0:
            raise MediaError("too_large", "over 2 GiB of decoded frames: ask for a size or fewer frames")
        return array


def _count_frames(data: bytes, limits: Limits, started: float) -> int:
    """Frames of the clip, from its packets where each holds one picture, else by decoding."""
    with _opened(data, limits) as container:
        stream = _video_stream(container)
        if stream.codec_context is not None and stream.codec_context.name in (
            "h264",
            "hevc",
            "mpeg4",
            "gif",
            "mjpeg",
        ):
            count = sum(1 for packet in container.demux(stream) if packet.size)
            if count:
                return count
    with _opened(data, limits) as container:
        count = sum(1 for _ in _frames(container, _video_stream(container), limits, started))
    if not count:
        raise MediaError("truncated", "no frame could be decoded")
    return count


def _check_complete(container, stream, count: int, end: float) -> None:
    """Raises `truncated` where clearly fewer frames came out than the container promises."""
    if stream.frames and count < stream.frames - max(2, stream.frames // 50):
        raise MediaError("truncated", f"{count} of {stream.frames} frames")
    tag = stream.metadata.get("DURATION")  # Matroska and WebM, where the muxer wrote it
    if tag and (promised := _clock(tag)) and end < 0.9 * promised - 0.5:
        raise MediaError("truncated", f"{end:.2f} of {promised:.2f} s")


def _clock(text: str) -> float | None:
    """Seconds of `hh:mm:ss.fraction`."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _container_name(container) -> str:
    """One short name: mp4 for the whole mov family, webm or mkv by what the header says."""
    name = container.format.name
    if "mp4" in name:
        return "mp4"
    return "mkv" if "matroska" in name else name.split(",")[0]


def _video_mark(container) -> Any:
    for key, value in container.metadata.items():
        if key.lower() in ("comment", "description") and value.startswith(MARK):
            return parse_mark(value.removeprefix(MARK).strip())
    return None
