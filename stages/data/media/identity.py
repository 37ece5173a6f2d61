"""What an item is, whatever file it came in: the same for every lossless copy, and nearly the same for a near one.

In: what is decoded. Out: an identity and a look; of texts a sketch too, see `stages.data.media.sketches`.

    identity   64 hex digits, BLAKE3, of texts sha256: of a picture's pixels and size, of a clip's frames, of a text
    look       a picture in LOOK_SIDE x LOOK_SIDE pixels, RGB bytes; of a clip so four frames of it, one after another
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from blake3 import blake3
from PIL import Image

LOOK_SIDE = 32
LOOK_BYTES = LOOK_SIDE * LOOK_SIDE * 3
CLIP_FRAMES = 4
_KEPT_FRAMES = 16
_MOST_ROWS = 256  # that are summed in 16 bits


def picture_identity(pixels: np.ndarray) -> str:
    """Identity of a picture, uint8 (H, W, 3)."""
    height, width = pixels.shape[:2]
    digest = blake3(f"picture {height}x{width} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def picture_look(pixels: np.ndarray) -> bytes:
    """Whole rows are averaged before anything else is: they lie one behind another, and so cost least."""
    rows, factor = _fewer_rows(pixels)
    box = (0, 0, pixels.shape[1], pixels.shape[0] / factor)
    small = Image.fromarray(rows).resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    return small.tobytes()


def _fewer_rows(pixels: np.ndarray) -> tuple[np.ndarray, int]:
    """uint8 (h, W, 3): means of so many rows each, between one and two for a row of the look; the last of what is
    left."""
    height, width = pixels.shape[:2]
    factor = min(height // LOOK_SIDE, _MOST_ROWS)
    if factor < 2:
        return pixels, 1
    whole = height // factor
    blocks = pixels[: whole * factor].reshape(whole, factor, width * 3)
    sums = np.add(blocks[:, 0], blocks[:, 1], dtype=np.uint16)
    for row in range(2, factor):
        sums += blocks[:, row]
    sums += np.uint16(factor // 2)
    means = (sums // np.uint16(factor)).astype(np.uint8).reshape(whole, width, 3)
    left = pixels[whole * factor :]
    if len(left):
        means = np.concatenate([means, left.mean(0, keepdims=True).round().astype(np.uint8)])
    return means, factor


class ClipIdentity:
    """Of the frames of a clip, `add`ed in order as PyAV gives them: their planes as decoded, which cost no conversion.
    The look is made of at most 32 frames, thinned out on the way."""

    def __init__(self):
        from av.video.reformatter import VideoReformatter

        self._digest = blake3(b"clip ")
        self._kept: list[np.ndarray] = []
        self._count, self._every = 0, 1
        self._scaler = VideoReformatter()  # one for all frames: to set one up costs more than a frame

    def add(self, frame: Any) -> None:
        shape = f"{frame.width}x{frame.height} {frame.rotation} {frame.format.name} "
        facts = blake3(shape.encode())
        for number, plane in enumerate(frame.planes):
            rows = np.frombuffer(plane, np.uint8)[: plane.line_size * plane.height].reshape(plane.height, -1)
            facts.update(np.ascontiguousarray(rows[:, : _row_bytes(frame, number)]).data)
        self._digest.update(facts.digest())
        if self._count % self._every == 0:
            self._kept.append(self._small(frame))
            if len(self._kept) == 2 * _KEPT_FRAMES:
                self._kept, self._every = self._kept[::2], self._every * 2
        self._count += 1

    def identity(self) -> str:
        return self._digest.hexdigest()

    def look(self) -> bytes:
        """The first frame, those after one and two thirds, and the last."""
        steps = CLIP_FRAMES - 1
        chosen = [self._kept[round(i * (len(self._kept) - 1) / steps)] for i in range(CLIP_FRAMES)]
        quarters = (frame.reshape(LOOK_SIDE, 2, LOOK_SIDE, 2, 3) for frame in chosen)
        return b"".join(frame.mean((1, 3)).round().astype(np.uint8).tobytes() for frame in quarters)

    def _small(self, frame: Any) -> np.ndarray:
        side = 2 * LOOK_SIDE
        return self._scaler.reformat(frame, side, side, format="rgb24", interpolation="AREA").to_ndarray()


def _row_bytes(frame: Any, number: int) -> int:
    """Bytes of a row of plane `number` that hold pixels: what follows them is left over from other frames."""
    plane, components = frame.planes[number], [c for c in frame.format.components if c.plane == number]
    if frame.format.has_palette:
        return plane.width if number == 0 else plane.line_size
    if len(frame.planes) == 1:
        return (plane.width * frame.format.padded_bits_per_pixel + 7) // 8
    return plane.width * sum((component.bits + 7) // 8 for component in components)


def text_identity(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
