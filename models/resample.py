"""Bicubic scaling free of aliasing, as Pillow's `Image.resize` computes it.

In: a uint8 picture and the part of it that is meant. Out: a uint8 picture of another size. Training scales by Pillow
(`stages.data.media.scaling`); this is for users of a model, who have torch alone: what they show is what it was
trained on. The arithmetic is Pillow's (src/libImaging/Resample.c): weights of 22 bits, across and then down, rounded to
levels after each. So are the levels, bit for bit; but Pillow 13 scales some pictures down first and then across, and
of those some levels differ, most by one (PSNR of photos at least 56 dB).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from omniloom.models.cover import Box, Size

_REACH = 2.0  # of the kernel, in pixels of the coarser picture
_A = -0.5  # of the cubic kernel
_BITS = 22  # of a weight behind the point
_BLOCK = 16  # outputs that one product gives: few enough to share most of their inputs
_NUMBERS = 1 << 20  # of a product's left side, which bound its memory

Span = tuple[int, int, Tensor]  # inputs from, to, and their weights (inputs, outputs)


def resample(image: Tensor, size: Size, box: Box) -> Tensor:
    """The part of a picture in `box`, uint8 (H, W, C), brought to (height, width)."""
    left, top, right, bottom = (float(torch.tensor(edge, dtype=torch.float32)) for edge in box)  # as Pillow takes them
    height, width = image.shape[:2]
    if (top, bottom, size[0]) != (0, height, height):
        spans = list(_spans(height, top, bottom, size[0]))
        first, last = spans[0][0], spans[-1][1]
        rows = _across(image[first:last], left, right, size[1])
        spans = [(begin - first, end - first, weights) for begin, end, weights in spans]
        return _filtered(rows.permute(1, 2, 0), spans).permute(2, 0, 1).contiguous()
    return _across(image, left, right, size[1])


def _across(image: Tensor, left: float, right: float, count: int) -> Tensor:
    width = image.shape[1]
    if (left, right, count) == (0, width, width):
        return image
    return _filtered(image.transpose(1, 2), list(_spans(width, left, right, count))).transpose(1, 2)


def _filtered(x: Tensor, spans: list[Span]) -> Tensor:
    """uint8 (M, C, length) -> uint8 (M, C, outputs). Whole numbers below 2^53 throughout, so doubles are exact."""
    first, last = spans[0][0], spans[-1][1]
    made = []
    for rows in x[..., first:last].reshape(-1, last - first).split(max(1, _NUMBERS // (last - first))):
        rows = rows.double()
        sums = torch.cat([rows[:, begin - first : end - first] @ weights for begin, end, weights in spans], dim=1)
        made.append(((sums + 2 ** (_BITS - 1)) / 2**_BITS).floor().clamp(0, 255).to(torch.uint8))
    return torch.cat(made).reshape(*x.shape[:2], -1)


def _spans(length: int, begin: float, end: float, count: int) -> Iterator[Span]:
    """How `count` outputs are made of the inputs from `begin` to `end` of `length`: a block of outputs at a time."""
    step = float(torch.tensor(end - begin, dtype=torch.float32)) / count
    stretch = max(step, 1.0)
    centres = begin + (torch.arange(count, dtype=torch.float64) + 0.5) * step
    first = (centres - _REACH * stretch + 0.5).long().clamp(min=0)
    last = (centres + _REACH * stretch + 0.5).long().clamp(max=length)
    for block in torch.arange(count).split(_BLOCK):
        low, high = int(first[block[0]]), int(last[block[-1]])
        inputs = torch.arange(low, high)[:, None]
        weights = _cubic((inputs - centres[block] + 0.5) * (1 / stretch))
        weights = weights.masked_fill((inputs < first[block]) | (inputs >= last[block]), 0.0)
        weights = weights / weights.cumsum(0)[-1] * 2**_BITS
        yield low, high, (weights + weights.sign() / 2).trunc()


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
