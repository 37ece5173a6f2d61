"""Clipping: a long recording as clips of some seconds each, one after the other, so that nobody holds it.

In: a file that can seek. Out: by clip its start and its bytes, an mp4 (H.264) of the frames that a player shows from
`number * seconds` on, counted from the first frame, up to the next clip's: upright, with square pixels, each at its own
time. Frames go from the decoder to the encoder one by one, so that a packet, a frame and one clip's bytes are held,
however long the recording is. Equal frames give equal bytes, as in `videos.encode_mp4`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, BinaryIO

import av

from omniloom.stages.data.media.limits import Limits
from omniloom.stages.data.media.video_pixels import display_size, displayed
from omniloom.stages.data.media.video_stream import VideoStream, opened_file
from omniloom.stages.data.media.videos import X264, video_mark

_CLOCK = 90_000  # ticks a second


@dataclass(frozen=True)
class Clip:
    """`start` in seconds after the recording's first frame; of its `frames` damage has reached `damaged`; whether the
    recording is `marked` as made by a model of this project."""

    number: int
    start: float
    data: bytes
    frames: int
    damaged: int
    marked: bool


def stated_seconds(file: BinaryIO, limits: Limits) -> float | None:
    """How long the container says that the video is; None where it says nothing."""
    with opened_file(file, _of_any_length(limits)) as video:
        if video.stream.duration and video.stream.time_base:
            return float(video.stream.duration * video.stream.time_base)
        return video.container.duration / av.time_base if video.container.duration else None


def clips(file: BinaryIO, seconds: float, limits: Limits) -> Iterator[Clip]:
    """The clips in their order; those without a frame are left out. `MediaError` where the recording cannot be read,
    or not to its end: the clips before that have been given."""
    with opened_file(file, _of_any_length(limits), checked=True) as video:
        writer: _Writer | None = None
        for frame in video.frames():
            number = int(round(_CLOCK * (video.moment - (video.first or 0.0))) // round(_CLOCK * seconds))
            if writer and number > writer.number:
                yield writer.clip(video)
                writer = None
            writer = writer or _Writer(number, seconds, frame, video)
            writer.add(frame, video)
        if writer:
            yield writer.clip(video)
        video.check_sound()


def _of_any_length(limits: Limits) -> Limits:
    """Those of a frame: a clip's are for who reads it."""
    most = 1 << 62
    return replace(limits, max_bytes=most, max_duration=float("inf"), max_frames=most, max_video_pixels=most)


class _Writer:
    """One clip, frame by frame."""

    def __init__(self, number: int, seconds: float, frame: av.VideoFrame, video: VideoStream):
        self.number, self.start = number, number * seconds
        self._aspect, self._size = video.pixel_aspect, display_size(frame, video.pixel_aspect)
        self._sink, self._frames, self._last = io.BytesIO(), 0, -1
        self._container = av.open(self._sink, "w", format="mp4")
        self._stream: Any = self._container.add_stream("libx264", _rate(video), options=X264)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv444p" if self._size[0] % 2 or self._size[1] % 2 else "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, _CLOCK)

    def add(self, frame: av.VideoFrame, video: VideoStream) -> None:
        shown = av.VideoFrame.from_ndarray(displayed(frame, self._aspect, None, self._size), format="rgb24")
        since = round(_CLOCK * (video.moment - (video.first or 0.0) - self.start))
        self._last = shown.pts = max(since, self._last + 1)
        shown.time_base = Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(shown))
        self._frames += 1

    def clip(self, video: VideoStream) -> Clip:
        self._container.mux(self._stream.encode())
        self._container.close()
        return Clip(
            self.number,
            self.start,
            self._sink.getvalue(),
            self._frames,
            video.damage(),
            video_mark(video.container) is not None,
        )


def _rate(video: VideoStream) -> Fraction:
    """Frames a second, by which a clip's last frame lasts: each has its own time."""
    rate = video.stream.average_rate
    return rate.limit_denominator(60000) if rate and 0.1 <= rate <= 1000 else Fraction(24)
