"""Inception v3 up to its pooled features, by which FID and KID are defined (arXiv 1512.00567; 1706.08500; 1801.01401).

In: uint8 pictures (B, 3, H, W) of any size; a state dict in the names of torchvision's model. Out: float32 (B, 2048).
Two networks have these names, told apart by the rows of `fc.weight`:
    1008   the weights of 2015-12-05 that FID is defined by, ported from TensorFlow ("pt_inception-2015-12-05").
           Pictures are resized to 299x299 as TensorFlow 1 does it (bilinear without antialiasing, corners not aligned:
           output pixel i reads input i * size / 299) and scaled to (x - 128) / 128; mean poolings leave the padding
           out, and the last block pools by maximum
    1000   torchvision's own weights: resized to 299x299 (bilinear, antialiased, half-pixel centres), scaled to
           x / 127.5 - 1; mean poolings count the padding. Distances in these features compare with no published FID
Batch norms are folded into the convolutions before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.features.layouts import (
    FID_CLASSES,
    INCEPTION_BLOCKS,
    INCEPTION_STEM,
    Conv,
    Step,
    inception_convs,
)

SIDE = 299
_EPS = 1e-3
FID_PREPROCESSING = (
    "uint8 to 299x299 as TensorFlow 1 resizes (bilinear, no antialiasing, corners not aligned), (x - 128) / 128; "
    "Inception v3 of 2015-12-05, 2048 pooled features"
)
TORCHVISION_PREPROCESSING = (
    "uint8 to 299x299 (bilinear, antialiased, half-pixel centres), x / 127.5 - 1; torchvision's Inception v3, 2048 "
    "pooled features: no published FID compares"
)


class Inception(nn.Module):
    """The network. `state`: a state dict that has the keys and shapes of `layouts.inception_tensors`."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.of_fid = state["fc.weight"].shape[0] == FID_CLASSES
        self.preprocessing = FID_PREPROCESSING if self.of_fid else TORCHVISION_PREPROCESSING
        for key, _ in inception_convs():
            scale = state[f"{key}.bn.weight"].double() / (state[f"{key}.bn.running_var"].double() + _EPS).sqrt()
            weight = state[f"{key}.conv.weight"].double() * scale[:, None, None, None]
            bias = state[f"{key}.bn.bias"].double() - state[f"{key}.bn.running_mean"].double() * scale
            for name, value in (("weight", weight), ("bias", bias)):
                self.register_buffer(f"{key}.{name}".replace(".", "_"), value.float(), persistent=False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        x = self._scaled(pictures.float())
        x = self._steps("", INCEPTION_STEM, x)
        for name, branches in INCEPTION_BLOCKS.items():
            self._by_maximum = self.of_fid and name == "Mixed_7c"
            x = torch.cat([self._steps(f"{name}.", branch, x) for branch in branches], 1)
        return x.mean((2, 3))

    def _scaled(self, x: Tensor) -> Tensor:
        if self.of_fid:
            return (resized_like_tensorflow1(x, SIDE) - 128) / 128
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        return x / 127.5 - 1

    def _steps(self, root: str, steps: Iterable[Step], x: Tensor) -> Tensor:
        for step in steps:
            if step == "halve":
                x = F.max_pool2d(x, 3, stride=2)
            elif step == "mean":
                x = self._pooled(x)
            elif isinstance(step, Conv):
                x = self._conv(root, step, x)
            else:
                x = torch.cat([self._conv(root, conv, x) for conv in step if isinstance(conv, Conv)], 1)
        return x

    def _pooled(self, x: Tensor) -> Tensor:
        if self._by_maximum:
            return F.max_pool2d(x, 3, stride=1, padding=1)
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=not self.of_fid)

    def _conv(self, root: str, conv: Conv, x: Tensor) -> Tensor:
        key = f"{root}{conv.name}".replace(".", "_")
        weight, bias = getattr(self, f"{key}_weight"), getattr(self, f"{key}_bias")
        return F.relu(F.conv2d(x, weight, bias, stride=conv.stride, padding=conv.padding))


def resized_like_tensorflow1(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), by `tf.image.resize_bilinear` of TensorFlow 1, corners not aligned: along
    each axis output i is between the inputs floor(i s) and floor(i s) + 1, the last at most, with s = size / side."""
    for axis in (2, 3):
        size = x.shape[axis]
        # In float32, as TensorFlow has it: where i s is a whole number in floats it takes that pixel.
        place = torch.arange(side, dtype=torch.float32, device=x.device) * (size / side)
        low = place.floor().long().clamp(max=size - 1)
        part = (place - low).view(-1, *(1 for _ in range(3 - axis)))
        first, second = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1))
        x = first + (second - first) * part
    return x
