"""Media: encoded images and videos to RGB arrays and back, and nothing that a file holds can do harm on the way.

In: the bytes of a file and `Limits`. Out: uint8 arrays in sRGB order, (H, W, 3) for an image, (T, H, W, 3) for a
video, upright. A file that cannot be used raises `MediaError` with a stable reason code; no other exception leaves.

Reason codes: empty, too_large, not_an_image, not_a_video, unsupported, truncated, corrupt, no_video_stream,
encrypted, too_long, timeout.

What a model of this project makes carries a mark: the PNG text chunk or the mp4 comment `omniloom`.
"""
from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from stages.limits import Limits

MARK = "omniloom"
# Formats that Pillow decodes by itself; EPS and the like would start other programs.
IMAGE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "TGA", "JPEG2000", "AVIF")
_DECODE_ERRORS = (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, OverflowError, MemoryError,
                  EOFError, ArithmeticError, NotImplementedError, RuntimeError, AttributeError)


class MediaError(Exception):
    """A file that cannot be used. `code` is one of the module's reason codes, `message` says more."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message

    def __reduce__(self):
        return type(self), (self.code, self.message)


@dataclass(frozen=True)
class ImageInfo:
    """`format` is Pillow's name in lower case; `mark` what the mark says, or None for a file without one."""

    width: int
    height: int
    format: str
    mark: Any = None


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


# ---- images ----

def decode_image(data: bytes, limits: Limits = Limits()) -> np.ndarray:
    """The image as uint8 (H, W, 3): EXIF orientation applied, transparency on white, 16 bits scaled, first frame."""
    return _decode_image(data, limits)[0]


def probe_image(data: bytes, limits: Limits = Limits()) -> ImageInfo:
    """What the image is, found by decoding it whole: a truncated one raises."""
    return _decode_image(data, limits)[1]


def _decode_image(data: bytes, limits: Limits) -> tuple[np.ndarray, ImageInfo]:
    _check_bytes(data, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images and odd EXIF; the limits decide here
        try:
            image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
        except UnidentifiedImageError:
            raise MediaError("not_an_image", "no known image format") from None
        except Image.DecompressionBombError as error:
            raise MediaError("too_large", str(error)) from None
        except _DECODE_ERRORS as error:
            raise MediaError("corrupt", _one_line(error)) from None
        width, height = image.size
        if width * height > limits.max_pixels:
            raise MediaError("too_large", f"{width}x{height} pixels, at most {limits.max_pixels} in all")
        if width < 1 or height < 1:
            raise MediaError("corrupt", f"{width}x{height} pixels")
        try:
            image.load()
            format_ = (image.format or "").lower()
            mark = _image_mark(image)
            image = _upright(image)
            array = _to_rgb(image)
        except MediaError:
            raise
        except Image.DecompressionBombError as error:
            raise MediaError("too_large", str(error)) from None
        except _DECODE_ERRORS as error:
            text = _one_line(error)
            code = "truncated" if "truncated" in text.lower() else "corrupt"
            raise MediaError(code, text) from None
    height, width = array.shape[:2]
    return array, ImageInfo(width, height, format_, mark)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DECODE_ERRORS:
        return image  # damaged EXIF says nothing of the orientation; the pixels are sound


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 (H, W, 3) of a loaded image in any of Pillow's modes."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _grey_to_rgb(np.asarray(image), mode)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey: np.ndarray, mode: str) -> np.ndarray:
    """16-bit grey, 32-bit integers that hold 16-bit values, floats in [0, 1]: to uint8 (H, W, 3)."""
    if mode == "F":
        if not np.isfinite(grey).all() or grey.min() < 0 or grey.max() > 1:
            raise MediaError("unsupported", "floating-point pixels outside [0, 1]: their range is not known")
        grey = grey * 255.0
    else:
        if grey.min() < 0 or grey.max() > 65535:
            raise MediaError("unsupported", "integer pixels beyond 16 bits: their range is not known")
        grey = grey.astype(np.float32) / 257.0
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)


def _image_mark(image: Image.Image) -> Any:
    texts = getattr(image, "text", None) or {}
    value = texts.get(MARK, image.info.get(MARK))
    return None if value is None else _parse_mark(value)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) or (T, H, W, 3) uint8 to `size` = (height, width), bicubic and free of aliasing; aspect not kept."""
    if image.ndim == 4:
        return np.stack([resize(frame, size) for frame in image])
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_center_crop(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Scale so that `size` (a side, or (height, width)) is just covered, then cut the middle; (T, H, W, 3) too."""
    height, width = (size, size) if isinstance(size, int) else size
    scaled_h, scaled_w = cover(image.shape[-3], image.shape[-2], height, width)
    return _center_crop(resize(image, (scaled_h, scaled_w)), height, width)


def cover(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """The smallest (height, width) of the same aspect that covers the target."""
    scale = max(target_height / height, target_width / width)
    return max(target_height, round(height * scale)), max(target_width, round(width * scale))


def _center_crop(array: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (array.shape[-3] - height) // 2, (array.shape[-2] - width) // 2
    return np.ascontiguousarray(array[..., top:top + height, left:left + width, :])


def encode_png(image: np.ndarray, mark: Any = None) -> bytes:
    """uint8 (H, W, 3) as PNG; `mark` (JSON-able, not None) is written as the text chunk `omniloom`."""
    _check_array("image", image, 3)
    info = PngImagePlugin.PngInfo()
    if mark is not None:
        info.add_itxt(MARK, json.dumps(mark, ensure_ascii=False))
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG", pnginfo=info)
    return sink.getvalue()


# ---- videos ----

def probe_video(data: bytes, limits: Limits = Limits()) -> VideoInfo:
    """What the video is, found by decoding every frame: a truncated one raises."""
    started = time.monotonic()
    with _opened(data, limits) as container:
        stream = _video_stream(container)
        first = last = None
        step = 0.0
        count = 0
        for frame in _frames(container, stream, limits, started):
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
        return VideoInfo(size[1], size[0], count, fps, duration, _container_name(container), stream.codec.name, mark)


def decode_video(data: bytes, limits: Limits = Limits(), *, num_frames: int | None = None, fps: float | None = None,
                 start: float = 0.0, size: int | tuple[int, int] | None = None) -> np.ndarray:
    """Frames as uint8 (T, H, W, 3).

    With `fps`, frame k is the one on display `start` + k/`fps` seconds after the first frame, whatever the clip's own
    rate; `num_frames` of them (the last frame stands still where the clip ends sooner), or as many as the clip has.
    Without `fps`, `num_frames` spread evenly from the first frame to the last by number; without both, every frame.
    `size` (a side, or (height, width)) scales to cover and cuts the middle while decoding, so that large frames are
    never held.
    """
    if num_frames is not None and num_frames < 1 or fps is not None and fps <= 0 or start < 0:
        raise ValueError(f"decode_video: num_frames={num_frames}, fps={fps}, start={start}: expected positive values")
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
    """uint8 (T, H, W, 3), even H and W, as H.264 in mp4; `mark` (JSON-able) goes into the comment tag. Deterministic."""
    _check_array("frames", frames, 4)
    if len(frames) == 0 or frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"encode_mp4: frames of shape {frames.shape}: expected some, of even height and width")
    from fractions import Fraction

    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as container:
        if mark is not None:
            container.metadata["comment"] = f"{MARK} {json.dumps(mark, ensure_ascii=False)}"
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(60000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(crf), "threads": "1", "preset": "veryfast"}
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")))
        container.mux(stream.encode())
    return sink.getvalue()


class _opened:
    """A container over bytes; whatever libav raises inside the block leaves as MediaError."""

    def __init__(self, data: bytes, limits: Limits):
        self.data, self.limits = data, limits

    def __enter__(self):
        _check_bytes(self.data, self.limits)
        try:
            # The custom reader gives libav these bytes and no other file: a playlist cannot name one.
            self.container = av.open(io.BytesIO(self.data), "r", metadata_errors="replace",
                                     options={"protocol_whitelist": "", "format_whitelist": _DEMUXERS})
        except (av.error.FFmpegError, *_DECODE_ERRORS) as error:
            code = "truncated" if _looks_like_video(self.data) else "not_a_video"
            raise MediaError(code, _one_line(error)) from None
        return self.container

    def __exit__(self, kind, error, _trace):
        self.container.close()
        if error is None or isinstance(error, MediaError):
            return
        if isinstance(error, av.error.FFmpegError) or isinstance(error, _DECODE_ERRORS):
            raise MediaError("corrupt", _one_line(error)) from None


_DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,gif,flv,asf,ogg,apng,webp_pipe,wav,mp3,flac,aac"


def _looks_like_video(data: bytes) -> bool:
    head = data[:64]
    return (head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide") or head[:4] in (b"\x1aE\xdf\xa3", b"OggS")
            or head[:4] == b"RIFF" and head[8:12] == b"AVI " or head[:6] in (b"GIF87a", b"GIF89a")
            or head[:4] in (b"\0\0\1\xba", b"\0\0\1\xb3"))


def _video_stream(container):
    streams = [s for s in container.streams.video
               if not (int(s.disposition) & int(av.stream.Disposition.attached_pic))]  # an album cover is no video
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
    if stream.duration and stream.time_base and float(stream.duration * stream.time_base) > limits.max_duration:
        raise MediaError("too_long", f"{float(stream.duration * stream.time_base):.1f} s, at most {limits.max_duration}")
    context = stream.codec_context
    if context.width * context.height > limits.max_pixels:
        raise MediaError("too_large", f"{context.width}x{context.height} pixels, at most {limits.max_pixels} in all")
    first = None
    for count, frame in enumerate(container.decode(stream), 1):
        if frame.width * frame.height > limits.max_pixels:
            raise MediaError("too_large", f"{frame.width}x{frame.height} pixels, at most {limits.max_pixels} in all")
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
