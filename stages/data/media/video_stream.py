"""One video of a file: the frames that a player shows, in order, and how sound they are.

In: the bytes of a file and `Limits`. Out: libav's frames. Those that an edit list hides (lead-in after a cut without
re-encoding) are decoded and not given out, for their packets carry the discard flag. With `checked`, the marks that
decoders set at damage are collected, and `check_sound` raises where they are too many or the file ends too soon.
Whatever libav raises leaves as `MediaError`.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, BinaryIO

import av
import av.logging
from av.codec.context import CodecContext

from omniloom.stages.data.media import containers
from omniloom.stages.data.media.limits import DECODE_ERRORS, Limits, MediaError, check_bytes, check_pixels, one_line

# Audio is opened too, to be told from garbage; nothing here reads a list of other files.
_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,gif,flv,asf,ogg,apng,wav,mp3,flac,aac"
# Their decoders flag the frames that damage has reached; the others only write of it. What these write besides, of
# references that a cut has left out, is harmless.
_FLAGGING = ("h264", "mpeg1video", "mpeg2video", "mpeg4", "h263", "flv", "prores")
_HEAD = 1 << 16
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # libav's own decoders leave the alpha plane out


@contextmanager
def opened(data: bytes, limits: Limits, checked: bool = False) -> Iterator[VideoStream]:
    """The file's first video. A still picture is none."""
    check_bytes(data, limits)
    if name := containers.still_picture(data):
        raise MediaError("not_a_video", f"a still picture ({name}), which a source of kind image_folder takes")
    with _opened(io.BytesIO(data), data, limits, checked) as video:
        if missing := containers.cut_short(data):
            raise MediaError("truncated", missing)
        yield video


@contextmanager
def opened_file(file: BinaryIO, limits: Limits, checked: bool = False) -> Iterator[VideoStream]:
    """The same of a file of any length, of which the beginning is looked at and the rest read as it is decoded."""
    head = file.read(_HEAD)
    check_bytes(head, limits)
    if name := containers.still_picture(head):
        raise MediaError("not_a_video", f"a still picture ({name}), which a source of kind image_folder takes")
    file.seek(0)
    with _opened(file, head, limits, checked) as video:
        yield video


@contextmanager
def _opened(file: BinaryIO, head: bytes, limits: Limits, checked: bool) -> Iterator[VideoStream]:
    container = _container(file, head)
    try:
        yield VideoStream(container, limits, checked)
    except (av.error.FFmpegError, *DECODE_ERRORS) as error:
        raise MediaError("corrupt", one_line(error)) from None
    finally:
        container.close()


def _container(file: BinaryIO, head: bytes):
    try:
        # The custom reader gives libav this file and no other: a playlist cannot name one.
        return av.open(
            file,
            "r",
            metadata_errors="replace",
            options={"protocol_whitelist": "", "format_whitelist": _DEMUXERS},
        )
    except (av.error.FFmpegError, *DECODE_ERRORS) as error:
        code = "truncated" if containers.looks_like_video(head) else "not_a_video"
        raise MediaError(code, one_line(error)) from None


class VideoStream:
    """`container`, `stream`, and after decoding: `first` and `end`, in seconds, of what is shown, and `shown`."""

    def __init__(self, container, limits: Limits, checked: bool):
        self.container, self.limits, self.checked = container, limits, checked
        self.stream = _first_video(container)
        self.context = _decoder(self.stream)
        if checked:  # the same marks whatever the machine; several threads hand on less of what they notice
            self.context.thread_count = 1
        else:
            self.context.thread_type = "AUTO"
        self.shown = self.packets = self.discarded = 0
        self.first: float | None = None
        self.moment = 0.0  # of the frame that was given out last, in seconds
        self.end = self.step = 0.0
        self._pixels = 0
        self._error = ""
        self._damaged: list[int | None] = []  # when packets are due that could not be read or were complained about
        self._failed = 0  # packets that gave an error in place of a frame
        self._trail: list[tuple[int | None, bool, bool]] = []  # of each frame: when due, key, marked
        self._lost = 0  # frames that gaps beside damage leave out

    @property
    def duration(self) -> float:
        """Seconds from the first frame that was shown to the end of the last."""
        return 0.0 if self.first is None else self.end - self.first

    @property
    def pixel_aspect(self) -> float:
        """Width over height of a stored pixel on display."""
        return float(self.stream.sample_aspect_ratio or self.context.sample_aspect_ratio or 1)

    def frames(self) -> Iterator[av.VideoFrame]:
        """What is shown, in the order of display, each checked against the limits."""
        self._check_header()
        with _decoder_log() if self.checked else nullcontext():
            for packet, complained, decoded in self._decoded():
                if packet is not None and (complained or packet.is_corrupt):
                    self._damaged.append(packet.pts)
                for frame in decoded:
                    self._note(frame)
                    yield frame
        if not self.shown:
            raise MediaError("corrupt" if self.packets else "truncated", self._error or "no frame could be decoded")

    def _decoded(self) -> Iterator[tuple[av.Packet | None, bool, list[av.VideoFrame]]]:
        """(packet, whether something was wrong, frames that came out), last what the decoder had kept back."""
        packets, end = iter(self.container.demux(self.stream)), None
        while True:
            with av.logging.Capture() if self.checked else nullcontext(()) as log:
                if (packet := next(packets, None)) is None:
                    break
                if not packet.size:  # a frame that a camera dropped, or the end, which empties the decoder
                    end = packet
                    continue
                self._count(packet)
                try:
                    decoded, failed = self.context.decode(packet), False
                except av.error.FFmpegError as error:
                    decoded, failed = [], True
                    self._error = one_line(error)
            self._failed += failed
            yield packet, failed or _complains(log), decoded
        try:
            yield None, False, self.context.decode(end)
        except av.error.FFmpegError as error:
            self._failed += 1
            self._error = one_line(error)

    def _check_header(self) -> None:
        limits, stream = self.limits, self.stream
        if stream.duration and stream.time_base and float(stream.duration * stream.time_base) > limits.max_duration:
            raise MediaError(
                "too_long", f"{float(stream.duration * stream.time_base):.1f} s, at most {limits.max_duration:g}"
            )
        check_pixels(self.context.width, self.context.height, limits)
        self._check_cost(self.context.width * self.context.height * stream.frames)

    def _check_cost(self, pixels: int) -> None:
        if pixels > self.limits.max_video_pixels:
            raise MediaError("too_costly", f"{pixels} pixels over all frames, at most {self.limits.max_video_pixels}")

    def _count(self, packet: av.Packet) -> None:
        self.packets += 1
        self.discarded += packet.is_discard
        self._pixels += self.context.width * self.context.height
        self._check_cost(self._pixels)

    def _note(self, frame: av.VideoFrame) -> None:
        """Times of the frame, and whether it goes beyond the limits."""
        limits = self.limits
        check_pixels(frame.width, frame.height, limits)
        moment = self.end if frame.time is None else float(frame.time)
        length = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
        if self.first is None:
            self.first = self._last = moment
        elif moment > self._last:
            if self._damaged and self.step and moment - self._last > 1.5 * self.step:
                self._lost += round((moment - self._last) / self.step) - 1
            self.step = moment - self._last
        self.step = length or self.step
        self._last = self.moment = max(self._last, moment)
        self.end = self._last + self.step
        self.shown += 1
        if self.shown > limits.max_frames or moment - self.first > limits.max_duration:
            raise MediaError("too_long", f"over {limits.max_frames} frames or {limits.max_duration:g} s")
        if self.checked:
            self._trail.append((frame.pts, frame.key_frame, frame.is_corrupt))

    def damage(self) -> int:
        """How many of the frames since it was last asked damage has reached, or has taken away; none is remembered."""
        count, due = self._reached() + max(self._lost, self._failed), self._trail[-1][0] if self._trail else None
        self._damaged = [at for at in self._damaged if at is not None and due is not None and at > due]
        self._trail, self._lost, self._failed = [], 0, 0
        return count

    def check_sound(self) -> None:
        """Raises `truncated` where clearly less came out than the container promises, `corrupt` where more of the
        frames than the limits allow are damaged, or drawn from damaged ones."""
        self._check_complete()
        lost = max(self._lost, self._failed)
        bad = self._reached() + lost
        if bad > self.limits.max_corrupt_fraction * (self.shown + lost):
            raise MediaError(
                "corrupt",
                f"damage reaches {bad} of {self.shown + lost} frames, at most {self.limits.max_corrupt_fraction:.1%}",
            )

    def _check_complete(self) -> None:
        name = self.container.format.name
        if "mp4" in name:
            # The samples that the edit list leaves, hidden ones included; the header's count knows no edit list.
            promised, shown = len(self.stream.index_entries), self.packets - self.discarded
            if self.packets < promised - max(2, promised // 50):
                raise MediaError("truncated", f"{self.packets} of {promised} samples")
            if 2 * self.shown + 2 < shown:  # the two fields of a frame may come apart; less than half is no such case
                raise MediaError("corrupt", f"{self.shown} frames came out of {shown} samples")
            return
        length = _clock(self.stream.metadata.get("DURATION", ""))  # Matroska and WebM, where the muxer wrote it
        if name == "avi" and self.stream.duration:
            length = float(self.stream.duration * self.stream.time_base)
        if length and self.end < 0.9 * length - 0.5:
            raise MediaError("truncated", f"{self.end:.2f} of {length:.2f} s")

    def _reached(self) -> int:
        """Frames that damage reaches: from the damaged one on, up to the next that stands by itself."""
        if not self._damaged and not any(marked for *_, marked in self._trail):
            return 0
        damaged = sorted(-1 << 62 if due is None else due for due in self._damaged)
        count = at = 0
        tainted = False
        for due, key, marked in self._trail:
            before = at
            while at < len(damaged) and due is not None and damaged[at] <= due:
                at += 1
            if key:
                tainted = at > before and damaged[at - 1] == due
            else:
                tainted = tainted or at > before
            tainted = tainted or marked
            count += tainted
        return count


def _first_video(container):
    cover = int(av.stream.Disposition.attached_pic)
    streams = [s for s in container.streams.video if not int(s.disposition) & cover]  # an album cover is no video
    if not streams:
        found = sorted({s.type for s in container.streams}) or ["nothing"]
        raise MediaError("no_video_stream", f"holds {', '.join(found)}")
    if "mp4" in container.format.name:  # pictures that stand beside a sequence are streams too, and last no time
        streams = [s for s in streams if s.duration] or streams
    if streams[0].codec_context is None:
        raise MediaError("unsupported", "no decoder for this codec")
    return streams[0]


def _decoder(stream):
    context = stream.codec_context
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    if context.name in _WITH_ALPHA and tags.get("alpha_mode") == "1":
        with_alpha: Any = CodecContext.create(_WITH_ALPHA[context.name], "r")
        with_alpha.extradata = context.extradata
        with_alpha.width, with_alpha.height = context.width, context.height
        return with_alpha
    return context


def _complains(log) -> bool:
    return any(level <= av.logging.ERROR and name not in _FLAGGING for level, name, _ in log)


_log_lock, _log_readers = threading.Lock(), 0


@contextmanager
def _decoder_log() -> Iterator[None]:
    """libav's errors can be captured meanwhile; it is silent at other times."""
    global _log_readers
    with _log_lock:
        _log_readers += 1
        av.logging.set_level(av.logging.ERROR)
        av.logging.set_skip_repeated(False)
    try:
        yield
    finally:
        with _log_lock:
            _log_readers -= 1
            if not _log_readers:
                av.logging.set_level(None)


def _clock(text: str) -> float | None:
    """Seconds of `hh:mm:ss.fraction`."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None
