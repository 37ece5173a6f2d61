"""Pictures for people: reconstructions and samples as PNG contact sheets.

Pixels come in as the models have them: float (B,3,H,W) or (B,3,T,H,W) in [-0.5, 0.5], or uint8 (...,H,W,3).
"""
from __future__ import annotations

import io

import numpy as np
from PIL import Image


def to_uint8(pixels) -> np.ndarray:
    """Float tensor (B,3,H,W) or (B,3,T,H,W) in [-0.5, 0.5] -> uint8 array (B,T,H,W,3); an image has T=1."""
    array = pixels.detach().float().cpu().numpy()
    if array.ndim == 4:
        array = array[:, :, None]
    return ((array.transpose(0, 2, 3, 4, 1) + 0.5) * 255).round().clip(0, 255).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, "PNG")
    return sink.getvalue()


def sheet(rows: list[list[np.ndarray]], cell: int = 64, gap: int = 2) -> bytes:
    """Rows of uint8 (H,W,3) pictures as one PNG; every picture is scaled to `cell` pixels (nearest, true pixels)."""
    columns = max((len(row) for row in rows), default=1)
    canvas = Image.new("RGB", (columns * (cell + gap) + gap, max(1, len(rows)) * (cell + gap) + gap), (128, 128, 128))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            image = Image.fromarray(picture).resize((cell, cell), Image.Resampling.NEAREST)
            canvas.paste(image, (gap + x * (cell + gap), gap + y * (cell + gap)))
    sink = io.BytesIO()
    canvas.save(sink, "PNG")
    return sink.getvalue()


def side_by_side(pairs: list[tuple], columns: int = 12) -> bytes:
    """Originals above reconstructions: pairs of float batches; a video shows the frames of its first clips."""
    rows = []
    for original, recon in pairs:
        a, b = to_uint8(original), to_uint8(recon)
        if a.shape[1] == 1:
            rows += [list(a[:columns, 0]), list(b[:columns, 0])]
        else:
            for clip in range(min(2, len(a))):
                rows += [list(a[clip, :columns]), list(b[clip, :columns])]
    return sheet(rows)
