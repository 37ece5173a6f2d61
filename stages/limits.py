"""What a media file may cost, and how one that cannot be used is told. Shared by images and videos.

In: bytes and limits. Out: `MediaError` with a reason code where they do not fit.
"""
from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np

MARK = "omniloom"
# What decoders raise for damaged input besides their own errors.
DECODE_ERRORS = (OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, MemoryError,
                 EOFError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class Limits:
    """What a single file may cost. Anything beyond is rejected with a reason, not read."""

    max_bytes: int = 256 << 20  # of a file as stored; of a JSONL file: of a line
    max_pixels: int = 64_000_000  # width x height of an image or a video frame
    max_frames: int = 20_000  # of a video
    max_duration: float = 600.0  # seconds of a video
    decode_seconds: float = 60.0  # wall time to decode one video

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name}: expected more than 0, got {getattr(self, field.name)}")


DEFAULT_LIMITS = Limits()


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


def check_array(name: str, array: np.ndarray, ndim: int) -> None:
    if str(array.dtype) != "uint8" or array.ndim != ndim or array.shape[-1] != 3:
        raise ValueError(
            f"{name}: expected uint8 with {ndim} axes, the last of 3, got {array.dtype} {array.shape}"
        )


def one_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:300] or type(error).__name__
