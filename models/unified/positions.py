"""Positions of packed text and visual segments. In: a scheme and a document's segments. Out: float32
coordinates, and the rotary cosines and sines that attention multiplies queries and keys with.

Axes are (row, column, time). Text at n sits at (n, n, n), counted from 0, so a document of text alone is
RoPE-1D whatever the scheme. Below, L is the place of the token before a visual segment of t frames of h x w,
and i, j, k count rows, columns and frames from 1; `next` is where the following token goes.

scheme      row, column, time                                               next
rope_1d     L + 1, L + 2, ... in the order (time, row, column), every axis  L + thw + 1
axial       L + i, L + j, L + k                                             L + max(t, h, w) + 1
tie_v1      L + i(w+1), L + j(h+1), L + (w+1)(h+1)/2          for t = 1     L + (w+1)(h+1)
            each index times the other two sides, each + 1    for t > 1     L + (t+1)(h+1)(w+1)
tie_v2      b + i, b' + j, b'' + k with b = L + (thw-h)/2, b' = L + (thw-w)/2, b'' = L + (thw-t)/2
                                                                            L + thw + 1
streaming   every frame a tie_v2 image, L advancing by hw a frame           L + thw + 1
one_place   L + k - 1 on every axis, on <boi>'s own place for t = 1         L + t - 1

RoPE-Tie v1 and v2: Su Jianlin's multimodal positions (kexue.fm/archives/10040 and 10352). In tie_v2 an image
counts as many places as it has patches, neighbours are 1 apart at any size, the gaps before and after it are
equal, and a 1x1 image is placed as a text token. Half-integers occur, so coordinates stay float32. On three
axes an image is a video of one frame; on two axes the time column is left out.

one_place is BAGEL's (arXiv 2505.14683): <boi>, an image and <eoi> stand on one place, a frame of a video a place behind
the one before it. Nothing there tells a row or a column: `sinusoids` of them are added to the blocks' input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from omniloom.models.unified.config import ROPE_SCHEMES, RopeScaling

Grid = tuple[int, int, int]
_ONE_AXIS = ("rope_1d", "one_place")  # schemes whose axes agree everywhere


@lru_cache(maxsize=1024)
def _visual_offsets(scheme: str, grid: Grid, axes: int) -> tuple[np.ndarray, int]:
    """Coordinates (t*h*w, axes) of a visual segment relative to L, and how far L moves."""
    t, h, w = grid
    count = t * h * w
    k, i, j = (a.reshape(-1).astype(np.float64) + 1 for a in np.indices((t, h, w)))
    if scheme == "rope_1d":
        n = np.arange(1, count + 1, dtype=np.float64)
        columns, advance = (n, n, n), count
    elif scheme == "axial":
        columns, advance = (i, j, k), max(t, h, w)
    elif scheme == "tie_v1":
        # The next token sits at L + (w+1)(h+1), so L itself moves one place less.
        if t == 1:
            total = (w + 1) * (h + 1)
            columns = (i * (w + 1), j * (h + 1), np.full_like(k, total / 2))
        else:
            total = (t + 1) * (h + 1) * (w + 1)
            columns = (i * (w + 1) * (t + 1), j * (h + 1) * (t + 1), k * (h + 1) * (w + 1))
        advance = total - 1
    elif scheme == "tie_v2":
        columns = (i + (count - h) / 2, j + (count - w) / 2, k + (count - t) / 2)
        advance = count
    elif scheme == "one_place":
        columns, advance = (k - 1, k - 1, k - 1), t - 2
    else:
        frame, area = (k - 1) * (h * w), h * w
        columns = (frame + i + (area - h) / 2, frame + j + (area - w) / 2, frame + 1 + (area - 1) / 2)
        advance = count
    offsets = np.stack(columns[:axes], axis=1)
    offsets.setflags(write=False)
    return offsets, advance


def place(scheme: str, segment: tuple, last: int, axes: int) -> tuple[np.ndarray, int]:
    """Coordinates of one segment that follows a token at `last` (-1 opens a document).

    Returns (float32 (n, axes), the new `last`), so that generation goes on from where a prefix ended.
    """
    kind, size = segment
    if kind == "text":
        line = np.arange(last + 1, last + 1 + size, dtype=np.float32)
        return np.repeat(line[:, None], axes, axis=1), last + size
    offsets, advance = _visual_offsets(scheme, size, axes)
    return (last + offsets).astype(np.float32), last + advance


def positions(scheme: str, segments: Sequence[tuple], axes: int | None = None) -> Tensor:
    """Coordinates of one document.

    scheme    one of `ROPE_SCHEMES`; the table above has their formulas
    segments  ("text", n) and ("visual", (t, h, w)) in order; a visual segment counts t*h*w places in the
              order time, row, column. The tokens that frame it are text to this function.
    axes      1, 2 or 3. None: 1 for rope_1d and one_place, 3 where a tie or axial document has a segment of several
              frames, else 2. Batches that mix images and videos ask for 3 throughout.
    Returns float32 (N, axes). ValueError for an unknown scheme or kind, a size below 1, or too few axes.
    """
    if scheme not in ROPE_SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(ROPE_SCHEMES)}, got {scheme!r}")
    moving = False
    checked: list[tuple] = []
    for index, (kind, size) in enumerate(segments):
        if kind == "text" and isinstance(size, int) and size >= 0:
            checked.append((kind, size))
        elif kind == "visual" and len(size) == 3 and min(size) >= 1:
            checked.append((kind, tuple(int(n) for n in size)))
            moving |= size[0] > 1
        else:
            raise ValueError(f'segments[{index}]: expected ("text", n) or ("visual", (t, h, w)), got {(kind, size)!r}')
    if axes is None:
        axes = 1 if scheme in _ONE_AXIS else 3 if moving and scheme != "streaming" else 2
    if axes not in (1, 2, 3) or (axes == 1 and scheme not in _ONE_AXIS):
        raise ValueError(f"axes: {scheme} needs {'1 to 3' if scheme in _ONE_AXIS else '2 or 3'}, got {axes}")
    last = -1
    pieces = [np.zeros((0, axes), np.float32)]
    for segment in checked:
        piece, last = place(scheme, segment, last, axes)
        pieces.append(piece)
    return torch.from_numpy(np.concatenate(pieces))


def cells(grid: Grid) -> np.ndarray:
    """float32 (t*h*w, 2): row and column of each position of a segment, from 0, in the order time, row, column."""
    return np.indices(grid).reshape(3, -1)[1:].T.astype(np.float32)


def sinusoids(cells: Tensor, width: int) -> Tensor:
    """float32 (M, width) of rows and columns (M, 2): sine and cosine of the column, then of the row, at the frequencies
    10000^(-4i/width) (MAE, arXiv 2111.06377, which takes them of arXiv 1706.03762)."""
    steps = torch.arange(width // 4, dtype=torch.float32, device=cells.device)
    angles = cells.float()[:, [1, 0], None] * 10000.0 ** (-4 * steps / width)
    return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(1)


def scale_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Rotary frequencies in radians a position, as Llama 3.1 stretches them; see `RopeScaling`."""
    turns = scaling.original_length * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * ((1 - kept) / scaling.factor + kept)


@lru_cache(maxsize=16)
def _frequencies(
    axes: int, head_dim: int, base: float, scaling: RopeScaling | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Of each pair of channels the axis and the frequency: kept, as every token that is generated asks for them."""
    with torch.inference_mode(False), torch.device(device):
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        frequencies = 1.0 / base**exponents
        axis_of = torch.arange(head_dim // 2) % axes
        return axis_of, frequencies if scaling is None else scale_frequencies(frequencies, scaling)


def rotary(
    positions: Tensor, head_dim: int, base: float = 10000.0, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (RoFormer, arXiv 2104.09864, eq. 15).

    positions (..., axes) float32 -> two float32 tensors (..., head_dim / 2). Frequency j is
    base^(-2j/head_dim) and turns with axis j mod axes: on two axes rows take the even j and columns the odd
    ones. Equal coordinates on all axes give RoPE-1D to the last bit. `scaling` changes the frequencies first.
    """
    axis_of, frequencies = _frequencies(positions.shape[-1], head_dim, base, scaling, positions.device)
    angles = positions.float()[..., axis_of] * frequencies
    return angles.cos(), angles.sin()
