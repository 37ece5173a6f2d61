"""Scenes of a recording: where they end, and each as a clip of its own. One frame is held at a time, and what is
encoded of one clip."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from omniloom.stages.curate.item import small_frame
from omniloom.stages.data.media import decode as media
from omniloom.stages.data.media.video_pixels import display_size, displayed
from omniloom.stages.data.media.video_stream import VideoStream, opened
from omniloom.stages.data.media.videos import X264

_CLOCK = 90_000  # ticks a second of what is written


def cuts(data: bytes, threshold: float, min_seconds: float, longest: int) -> list[int]:
    """The numbers of the frames that begin a scene, but for the first: rising."""
    found: list[tuple[int, float]] = []
    before: np.ndarray | None = None
    begun = end = 0.0
    with opened(data, media.NO_LIMITS) as video:
        for number, (moment, frame) in enumerate(_timed(video)):
            hsv = np.asarray(Image.fromarray(small_frame(frame, longest)).convert("HSV"), np.int16)
            differ, begun = 0.0, begun if number else moment
            if before is not None and before.shape == hsv.shape:
                differ = float(np.abs(hsv - before).mean())
            if differ > threshold and moment - begun >= min_seconds:
                found.append((number, moment))
                begun = moment
            before, end = hsv, moment
        if found and end - found[-1][1] < min_seconds:  # what is left is too short to stand alone
            found.pop()
    return [number for number, _ in found]


def clips(data: bytes, cuts: list[int]) -> Iterator[tuple[float, float, bytes]]:
    """(start, end, mp4) of each scene, seconds from the first frame of the recording."""
    with opened(data, media.NO_LIMITS) as video:
        writer, origin, number = None, None, 0
        for moment, frame in _timed(video):
            origin = moment if origin is None else origin
            if number in cuts or writer is None:
                if writer is not None:
                    yield writer.start, moment - origin, writer.finish(moment - origin)
                writer = _Writer(video, frame, moment - origin)
            writer.add(frame, moment - origin)
            number += 1
        if writer is not None:
            end = max(video.end - (origin or 0.0), writer.last)
            yield writer.start, end, writer.finish(end)


def clip_row(row: dict, start: float, end: float, data: bytes) -> dict:
    """The record of a clip of the recording `row`."""
    info = media.probe_video(data, media.NO_LIMITS)
    facts = {name: getattr(info, name) for name in ("width", "height", "frames", "fps", "duration", "format")}
    path = f"{row['path']}#t={round(start, 3):g},{round(end, 3):g}"
    return {**row, **facts, "id": info.identity, "media": data, "path": path}


def _timed(video: VideoStream) -> Iterator[tuple[float, Any]]:
    for frame in video.frames():
        yield (video.end if frame.time is None else float(frame.time)), frame


class _Writer:
    """Frames as H.264 in mp4, each shown from its own time on. Equal frames give equal bytes, as of `encode_mp4`."""

    def __init__(self, video: VideoStream, frame: Any, start: float):
        self.start = self.last = start
        self._aspect, self._whole = video.pixel_aspect, display_size(frame, video.pixel_aspect)
        self._sink = io.BytesIO()
        self._container = av.open(self._sink, "w", format="mp4")
        rate = Fraction(video.stream.average_rate or 25).limit_denominator(60000)
        self._stream = self._container.add_stream("libx264", rate=rate)
        self._stream.height, self._stream.width = (max(2, side // 2 * 2) for side in self._whole)
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = self._stream.codec_context.time_base = Fraction(1, _CLOCK)
        self._stream.options = {**X264}
        self._tick = -1

    def add(self, frame: Any, moment: float) -> None:
        pixels = displayed(frame, self._aspect, None, self._whole)
        pixels = np.pad(pixels, ((0, self._whole[0] < 2), (0, self._whole[1] < 2), (0, 0)), "edge")
        even = pixels[: self._stream.height, : self._stream.width]
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        self._tick = max(self._tick + 1, round((moment - self.start) * _CLOCK))
        picture.pts, picture.time_base = self._tick, Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(picture))
        self.last = moment

    def finish(self, end: float) -> bytes:
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._sink.getvalue()
