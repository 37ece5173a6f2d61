"""How values of pictures become the blocks' input. In: values (M, C) of M positions, segment by segment, each segment's
in the order time, row, column. Out: (M, width); the number of positions never changes, as a segment takes as many
places in a row as its grid has.

    linear      one Linear
    bottleneck  two, the first without a bias (JiT, arXiv 2511.13720, section 4.3)
    unet        convolutions over rows and columns, before the blocks and behind them (Transfusion, arXiv 2408.11039,
                section 3.3, whose U-Nets also change the number of positions): at the positions' resolution, at half
                of it, and back with a skip; what is before the blocks is handed to what is behind them. The segment's
                time scales and shifts the channels in each residual block

What the unet adds is detail: neighbours are seen before the blocks mix them, and the skip carries the noisy values past
the blocks to the output. A residual block at half the resolution has four times the parameters of one at the
positions' and costs as much: `unet_depth` says how many there are, which is where Simple Diffusion (arXiv 2301.11093,
section 3.3) scales a model. What it costs, at its 128 channels, beside a model of width 512 with 8
layers and 26.2 million parameters, on latents of 16 channels and a picture of 16 x 16 positions: 5.1 million
parameters, more than half of them at half the resolution, 4% of the time of a training step on one CPU core, and nine
gathered copies of its channels a convolution, which are kept for the backward pass.

Grids of any sizes, odd ones too, go through one call of each module: a convolution gathers each position's neighbours
and multiplies by one matrix. So every rank runs the same modules whatever its batch holds, as ZeRO-3 needs, and
normalisation is by position alone, so that no segment sees another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.norms import RMSNorm
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.positions import Grid

_SIDE, _HALVES = 3, 2
_TAPS, _CHILDREN = _SIDE * _SIDE, _HALVES * _HALVES


@dataclass
class GridTables:
    """Neighbours of M positions and of the K cells of 2 x 2 positions of one frame that they form; what lies outside of
    the frame is number M, of cells number K.

    around    int64 (9 M,): each position's 3 x 3 neighbourhood, row by row
    parent    int64 (M,): each position's cell
    children  int64 (4 K,): each cell's positions; the first is always there
    coarse    int64 (9 K,): each cell's 3 x 3 neighbourhood
    """

    around: Tensor
    parent: Tensor
    children: Tensor
    coarse: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GridTables:
        return GridTables(**{f.name: getattr(self, f.name).to(device, non_blocking=non_blocking) for f in fields(self)})


def _around(grid: Grid) -> np.ndarray:
    """(t h w, 9), -1 outside."""
    t, h, w = grid
    padded = np.pad(np.arange(t * h * w).reshape(grid), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
    shifts = [padded[:, i : i + h, j : j + w] for i in range(_SIDE) for j in range(_SIDE)]
    return np.stack(shifts, axis=-1).reshape(-1, _TAPS)


@lru_cache(maxsize=256)
def _tables(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four tables of one segment, -1 outside."""
    t, h, w = grid
    rows, columns = -(-h // _HALVES), -(-w // _HALVES)
    missing = ((0, 0), (0, rows * _HALVES - h), (0, columns * _HALVES - w))
    padded = np.pad(np.arange(t * h * w).reshape(grid), missing, constant_values=-1)
    children = padded.reshape(t, rows, _HALVES, columns, _HALVES).swapaxes(2, 3).reshape(-1, _CHILDREN)
    cells = np.arange(t * rows * columns).reshape(t, rows, columns)
    parent = cells.repeat(_HALVES, 1).repeat(_HALVES, 2)[:, :h, :w].reshape(-1)
    return _around(grid), parent, children, _around((t, rows, columns))


def grid_tables(grids: Sequence[Grid]) -> GridTables:
    """Tables of segments that lie one behind the other."""
    tables = [_tables(grid) for grid in grids]
    sizes, cells = ([len(own[i]) for own in tables] for i in (0, 3))

    def joined(column: int, counts: list[int]) -> Tensor:
        """A column's tables in one; `counts` are those of what its numbers mean."""
        starts = np.cumsum([0, *counts])
        parts = [
            np.where(own[column] < 0, starts[-1], own[column] + start).reshape(-1) for own, start in zip(tables, starts)
        ]
        return torch.from_numpy(np.concatenate([np.empty(0, np.int64), *parts]))

    return GridTables(joined(0, sizes), joined(1, cells), joined(2, sizes), joined(3, cells))


@dataclass
class VisualInput:
    """What the output of M positions may look back at: the values (M, C) that went in, the embedding of the time by
    segment (segments, width), whose segment each position is, int64 (M,), and of a unet its tables and its features
    before the blocks (M, unet_width)."""

    values: Tensor
    time: Tensor
    segment: Tensor
    tables: GridTables | None = None
    features: Tensor | None = None


class _Gathered(nn.Linear):
    """A convolution: x (M, dim) and a table of `taps` numbers a row -> (rows, out), zeros where a number is M."""

    def __init__(self, dim: int, out: int, taps: int):
        super().__init__(taps * dim, out)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(F.pad(x, (0, 0, 0, 1)).index_select(0, table).view(-1, self.in_features))


class _Residual(nn.Module):
    """Two 3 x 3 convolutions, the second's input scaled and shifted by the segment's time."""

    def __init__(self, dim: int, config: UnifiedConfig):
        super().__init__()
        self.first_norm = RMSNorm(dim, config.norm_eps)
        self.first = _Gathered(dim, dim, _TAPS)
        self.time = nn.Linear(config.width, 2 * dim)
        self.second_norm = RMSNorm(dim, config.norm_eps)
        self.second = _Gathered(dim, dim, _TAPS)

    @property
    def starts_at_zero(self) -> tuple[nn.Linear, ...]:
        return (self.time,)

    def forward(self, x: Tensor, time: Tensor, segment: Tensor, table: Tensor) -> Tensor:
        """x (M, dim), time (segments, width), segment int64 (M,)."""
        inner = self.first(F.silu(self.first_norm(x)), table)
        scale, shift = self.time(time).index_select(0, segment).chunk(2, dim=-1)
        return x + self.second(F.silu(self.second_norm(inner) * (1 + scale) + shift), table)


class UNet(nn.Module):
    """(M, inputs) -> (M, unet_width), normalised."""

    def __init__(self, inputs: int, config: UnifiedConfig):
        super().__init__()
        dim = config.unet_width
        self.enter = nn.Linear(inputs, dim)
        self.before = _Residual(dim, config)
        self.down = _Gathered(dim, 2 * dim, _CHILDREN)
        self.middle = _Residual(2 * dim, config)
        self.deeper = nn.ModuleList(_Residual(2 * dim, config) for _ in range((config.unet_depth or 1) - 1))
        self.up = nn.Linear(2 * dim + dim, dim)
        self.behind = _Residual(dim, config)
        self.norm = RMSNorm(dim, config.norm_eps)

    def forward(self, x: Tensor, time: Tensor, segment: Tensor, tables: GridTables) -> Tensor:
        x = self.before(self.enter(x), time, segment, tables.around)
        cells = self.down(x, tables.children)
        whose = segment.index_select(0, tables.children[::_CHILDREN])
        for block in (self.middle, *self.deeper):
            cells = block(cells, time, whose, tables.coarse)
        cells = cells.index_select(0, tables.parent)
        return self.norm(self.behind(self.up(torch.cat((cells, x), dim=-1)), time, segment, tables.around))


class UNetInput(nn.Module):
    def __init__(self, channels: int, config: UnifiedConfig):
        super().__init__()
        self.unet = UNet(channels, config)
        self.leave = nn.Linear(config.unet_width, config.width)

    def forward(self, given: VisualInput) -> tuple[Tensor, Tensor]:
        """(M, width), and the features (M, unet_width) that it is made of."""
        features = self.unet(given.values, given.time, given.segment, given.tables)
        return self.leave(features), features


class UNetOutput(nn.Module):
    """Hidden states (M, width) and what went in -> features (M, unet_width) of the prediction."""

    def __init__(self, config: UnifiedConfig):
        super().__init__()
        self.unet = UNet(config.width + config.unet_width, config)

    def forward(self, hidden: Tensor, given: VisualInput) -> Tensor:
        if given.features is None:
            raise ValueError("given: expected the features of the unet before the blocks, got None")
        return self.unet(torch.cat((hidden, given.features), dim=-1), given.time, given.segment, given.tables)
