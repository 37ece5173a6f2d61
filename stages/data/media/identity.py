"""What an item is, whatever file it came in: the same for every lossless copy, and nearly the same for a near one.

In: what is decoded. Out: an identity and a look; of texts a sketch too, see `stages.data.media.sketches`.

    identity   64 hex digits, BLAKE3, of texts sha256: of a picture's pixels and size, of a clip's frames, of a text
    look       a picture in LOOK_SIDE x LOOK_SIDE pixels, RGB bytes; of a clip so four frames of it, one after another
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
from blake3 import blake3
from PIL import Image

LOOK_SIDE = 32
LOOK_BYTES = LOOK_SIDE * LOOK_SIDE * 3
CLIP_FRAMES = 4
_KEPT_FRAMES = 16
_MOST_SUMMED = 256  # rows in 16 bits, and columns of those in 24


def picture_identity(pixels: np.ndarray) -> str:
    """Identity of a picture, uint8 (H, W, 3)."""
    height, width = pixels.shape[:2]
    digest = blake3(f"picture {height}x{width} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def picture_look(pixels: np.ndarray) -> bytes:
    """Of uint8 (H, W, 3). Whole blocks of pixels are averaged before anything else is."""
    means, (down, across) = _means_of_blocks(pixels)
    if means.shape[:2] == (LOOK_SIDE, LOOK_SIDE):
        return means.tobytes()
    box = (0, 0, pixels.shape[1] / across, pixels.shape[0] / down)
    small = Image.fromarray(means).resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BILINEAR, box, reducing_gap=2.0)
    return small.tobytes()


def _means_of_blocks(pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """uint8 (h, w, 3): means of blocks of so many rows and columns each, between one and two blocks for a pixel of the
    look on either side; the last ones of what is left.

    Rows lie one behind another and are summed first, in 16 bits; columns by a product of matrices, whose sums are whole
    numbers below 2^24 and so the same in whatever order float32 adds them.
    """
    height, width = pixels.shape[:2]
    down, across = (max(1, min(side // LOOK_SIDE, _MOST_SUMMED)) for side in (height, width))
    if down == across == 1:
        return pixels, (1, 1)
    rows = pixels.reshape(height, width * 3)
    whole, left = divmod(height, down)
    sums = np.add.reduce(rows[: whole * down].reshape(whole, down, width * 3), 1, dtype=np.uint16)
    if left:
        sums = np.concatenate([sums, np.add.reduce(rows[whole * down :], 0, dtype=np.uint16, keepdims=True)])
    blocks, rest = divmod(width, across)
    held = sums[:, : blocks * across * 3].reshape(len(sums) * blocks, across * 3).astype(np.float32)
    means = (held @ _of_columns(across)).reshape(len(sums), blocks, 3)
    if rest:
        last = sums[:, blocks * across * 3 :].reshape(len(sums), rest, 3).sum(1, dtype=np.float32, keepdims=True)
        means = np.concatenate([means, last * np.float32(across / rest)], 1)
    if left:
        means[-1] *= np.float32(down / left)
    return (means * np.float32(1 / (down * across)) + np.float32(0.5)).astype(np.uint8), (down, across)


@functools.cache
def _of_columns(count: int) -> np.ndarray:
    """float32 (count * 3, 3): sums the colours of so many pixels beside each other."""
    return np.tile(np.eye(3, dtype=np.float32), (count, 1))


class ClipIdentity:
    """Of the frames of a clip, `add`ed in order as PyAV gives them: their planes as decoded, which cost no conversion.
    The look is made of at most 32 frames, thinned out on the way."""

    def __init__(self):
        from av.video.reformatter import VideoReformatter

        self._digest = blake3(b"clip ")
        self._kept: list[Any] = []  # small frames
        self._count, self._every = 0, 1
        self._scaler = VideoReformatter()  # one for all frames: to set one up costs more than a frame
        self._layout: tuple[tuple, list[int]] = (), []  # of the last frame, and the bytes of its planes' rows

    def add(self, frame: Any) -> None:
        layout = name, width, height = frame.format.name, frame.width, frame.height
        if layout != self._layout[0]:
            self._layout = layout, [_row_bytes(frame, number) for number in range(len(frame.planes))]
        facts = blake3(f"{width}x{height} {frame.rotation} {name} ".encode())
        for plane, held in zip(frame.planes, self._layout[1], strict=True):
            rows = np.frombuffer(plane, np.uint8)[: plane.line_size * plane.height].reshape(plane.height, -1)
            facts.update(np.ascontiguousarray(rows[:, :held]).data)
        self._digest.update(facts.digest())
        if self._count % self._every == 0:
            self._kept.append(self._small(frame, "yuv420p"))
            if len(self._kept) == 2 * _KEPT_FRAMES:
                self._kept, self._every = self._kept[::2], self._every * 2
        self._count += 1

    def identity(self) -> str:
        return self._digest.hexdigest()

    def look(self) -> bytes:
        """The first frame, those after one and two thirds, and the last."""
        steps = CLIP_FRAMES - 1
        chosen = [self._kept[round(i * (len(self._kept) - 1) / steps)] for i in range(CLIP_FRAMES)]
        colours = (self._small(frame, "rgb24").to_ndarray() for frame in chosen)
        quarters = (frame.reshape(LOOK_SIDE, 2, LOOK_SIDE, 2, 3) for frame in colours)
        return b"".join(frame.mean((1, 3)).round().astype(np.uint8).tobytes() for frame in quarters)

    def _small(self, frame: Any, format: str) -> Any:
        """Most frames are of this kind of planes already; only those that a look shows become colours."""
        side = 2 * LOOK_SIDE
        return self._scaler.reformat(frame, side, side, format=format, interpolation="AREA", threads=1)


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
