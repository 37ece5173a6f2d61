"""What a media file may cost, and how one that cannot be used is told. Shared by images and videos.

In: bytes and limits. Out: `MediaError` with a reason code where they do not fit.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

MARK = "omniloom"
# What decoders raise for damaged input besides their own errors.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    EOFError,
    RuntimeError,
    AttributeError,
)


@dataclass(frozen=True)
class Limits:
    """What a single file may be and cost. Anything beyond is rejected with a reason.

    Costs are counted in bytes, pixels and frames, never in seconds: what is kept does not depend on how busy the
    machine was. The defaults fit each other: 600 s at 60 frames a second are `max_frames`, 600 s of 1920x1080 at
    30 are within `max_video_pixels`.
    """

    max_bytes: int = 256 << 20
    """Bytes of a file as stored; of a file of JSON lines, bytes of a line. A text file may have more than this where it
    has ends of lines at which it can be read in parts of 4 MiB."""
    max_pixels: int = 64_000_000
    """Width x height of an image or of a video's frame."""
    min_side: int = 4
    """Pixels of the shorter side at least; spacers and tracking pixels have one to three."""
    max_aspect: float = 20.0
    """The longer side over the shorter one; rules and banners have more."""
    max_scan_pixels: int = 640_000_000
    """Width x height x scans of a JPEG; a progressive one has about ten scans."""
    max_frames: int = 36_000
    """Frames of a video."""
    max_duration: float = 600.0
    """Seconds of a video."""
    max_video_pixels: int = 40_000_000_000
    """Width x height x frames of a video, frames before its edit list's start included."""
    max_corrupt_fraction: float = 0.01
    """The share of a video's frames that may be damaged or depend on damaged ones."""

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self):
        for field in fields(self):
            if field.name != "max_corrupt_fraction" and getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name}: expected more than 0, got {getattr(self, field.name)}")
        if not 0 <= self.max_corrupt_fraction <= 1:
            raise ValueError(f"max_corrupt_fraction: expected 0 to 1, got {self.max_corrupt_fraction}")
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect: expected 1 or more, got {self.max_aspect}")


DEFAULT_LIMITS = Limits()
# For what ingest has accepted: later stages decode it whatever the limits were, and refuse nothing again.
NO_LIMITS = Limits(
    max_bytes=sys.maxsize,
    max_pixels=sys.maxsize,
    min_side=1,
    max_aspect=sys.maxsize,
    max_scan_pixels=sys.maxsize,
    max_frames=sys.maxsize,
    max_duration=math.inf,
    max_video_pixels=sys.maxsize,
    max_corrupt_fraction=1.0,
)


class MediaError(Exception):
    """A file that cannot be used. `code` is one of the module's reason codes, `message` says more."""

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message

    def __reduce__(self):
        return type(self), (self.code, self.message)


def parse_mark(value: str) -> Any:
    """What the mark says; a mark that cannot be parsed is still a mark."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return {"text": str(value)}


def check_bytes(data: bytes, limits: Limits) -> None:
    if not data:
        raise MediaError("empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise MediaError("too_large", f"{len(data)} bytes, at most {limits.max_bytes}")


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Raises `too_large` for a picture or frame of more than `max_pixels`."""
    if width * height > limits.max_pixels:
        raise MediaError("too_large", f"{width}x{height} pixels, at most {limits.max_pixels} in all")


def check_shape(width: int, height: int, limits: Limits) -> None:
    """Raises `too_small` or `too_thin` for what is no picture to learn from, by its size on display."""
    short, long = sorted((width, height))
    if short < limits.min_side:
        raise MediaError("too_small", f"{width}x{height} pixels, expected sides of {limits.min_side} or more")
    if long > limits.max_aspect * short:
        raise MediaError("too_thin", f"{width}x{height} pixels, expected at most {limits.max_aspect:g} to 1")


def check_array(name: str, array: np.ndarray, ndim: int) -> None:
    if str(array.dtype) != "uint8" or array.ndim != ndim or array.shape[-1] != 3:
        raise ValueError(f"{name}: expected uint8 with {ndim} axes, the last of 3, got {array.dtype} {array.shape}")


def one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:300] or type(error).__name__
