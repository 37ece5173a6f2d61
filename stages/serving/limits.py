"""What one request to a server may ask for and cost. In: numbers. Out: `Limits`, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """What a server takes; anything beyond is refused before it is computed."""

    max_picture_bytes: int = 20 << 20
    """Bytes of a picture that is sent, as encoded."""
    max_picture_pixels: int = 16_000_000
    """Width x height of a picture that is sent."""
    max_pictures: int = 4
    """Pictures that a request shows."""
    max_prompt: int = 8_000
    """Characters of a prompt, or of all messages together."""
    max_drawn_pixels: int | None = None
    """Width x height of a picture that is drawn; four times the model's own by default."""
    max_n: int = 10
    """Answers to one request."""
    max_steps: int = 100
    """Steps of a picture."""
    max_tokens: int = 1_024
    """Tokens of a text."""
    max_batch: int = 16
    """Answers that are computed at once."""
    max_queue: int = 64
    """Answers that wait beyond those; a request for more is told to come back later."""
    timeout: float = 120.0
    """Seconds that a request may take, its wait included."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "max_queue" else math.ulp(0) if field.name == "timeout" else 1
            if value is not None and not (value >= least and math.isfinite(value)):
                raise ValueError(f"{field.name}: expected {'at least 0' if least == 0 else 'more than 0'}, got {value}")

    @property
    def body_bytes(self) -> int:
        """Of a request: its pictures in base64, its text escaped, and what stands around them."""
        return self.max_pictures * self.max_picture_bytes * 4 // 3 + 12 * self.max_prompt + (1 << 20)
