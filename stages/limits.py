"""Limits on what ingest decodes: plain numbers, so that the config can hold them without importing a decoder."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar


@dataclass(frozen=True)
class Limits:
    """What a single file may cost. Anything beyond is rejected with a reason, not read."""

    max_bytes: int = 256 << 20        # of a media or text file as stored; a JSONL file may be larger, a line may not
    max_pixels: int = 64_000_000      # width x height of an image or a video frame
    max_frames: int = 20_000          # of a video
    max_duration: float = 600.0       # seconds of a video
    decode_seconds: float = 60.0      # wall time to decode one video

    __pydantic_config__: ClassVar[dict] = {"extra": "forbid"}

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name}: expected more than 0, got {getattr(self, field.name)}")
