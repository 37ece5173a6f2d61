"""PatchGAN discriminators for images and videos (arXiv 1611.07004; 3-D as in arXiv 2204.03638).

In: pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, T, H, W), any size from 1x1 on and any number of frames.
Out: `Judgement`: a map of logits, one a receptive field (high: real), and the features of each layer.
Normalisation is by groups within an example: unlike batch statistics it couples neither examples nor ranks,
keeps no state, and judging a reconstruction leaves no trace in the discriminator.
Errors: `ValueError` naming the shape.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from omniloom.models.norms import GroupNorm
from omniloom.models.tokenizer.adversarial_losses import ADVERSARIAL_LOSSES, AdversarialLoss
from omniloom.models.tokenizer.losses_config import DiscriminatorConfig


class Judgement(NamedTuple):
    """logits: (B, 1, ...) map; features: one (B, C, ...) tensor a hidden layer, first layer first."""

    logits: Tensor
    features: list[Tensor]


class Conv3d(nn.Conv3d):
    """A 3-D convolution that computes in float32 on CPU, whatever the weights' or autocast's type.

    There, torch 2.13's bf16 kernel returns weight gradients of NaN or 1e35 for ordinary shapes (16 -> 32
    channels over 2x5x5), while values and input gradients are right.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(x.float(), self.weight.float(), bias).to(x.dtype)


class PatchDiscriminator(nn.Module):
    """Convolutions of kernel 4 in `dims` dimensions: `layers` of stride 2, one of stride 1, one to logits.

    A padding of 2 keeps at least one place whatever the input's size.
    """

    def __init__(self, config: DiscriminatorConfig, dims: int) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: Conv3d}[dims]
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        stages = [nn.Sequential(conv(3, widths[0], 4, stride=2, padding=2), nn.LeakyReLU(0.2))]
        for i, (narrow, wide) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < config.layers else 1
            layer = conv(narrow, wide, 4, stride=stride, padding=2)
            stages.append(nn.Sequential(layer, GroupNorm(4, wide), nn.LeakyReLU(0.2)))
        self.stages = nn.ModuleList(stages)
        self.head = conv(widths[-1], 1, 4, stride=1, padding=2)
        for module in self.modules():
            if isinstance(module, conv):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Judgement:
        x = x.to(self.head.weight.dtype)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return Judgement(self.head(x), features)


class Discriminator(nn.Module):
    """Sends images, and videos of a single frame, to a 2-D PatchGAN, and videos to a 3-D one."""

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        config = config or DiscriminatorConfig()
        self.kind = config.loss or "hinge"
        self.image = PatchDiscriminator(config, 2)
        self.video = PatchDiscriminator(config, 3)

    @property
    def loss(self) -> AdversarialLoss:
        """What it is trained by, and what a generator is against it."""
        return ADVERSARIAL_LOSSES[self.kind]

    def forward(self, x: Tensor) -> Judgement:
        if x.ndim == 5 and x.shape[2] == 1:
            x = x.squeeze(2)
        if x.ndim not in (4, 5) or x.shape[1] != 3 or 0 in x.shape:
            raise ValueError(f"pixels: expected (B, 3, H, W) or (B, 3, T, H, W), got {tuple(x.shape)}")
        return (self.image if x.ndim == 4 else self.video)(x)


def frozen_judgement(discriminator: nn.Module, x: Tensor) -> Judgement:
    """Judge x so that gradients reach x and no parameter of the discriminator."""
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    return torch.func.functional_call(discriminator, frozen, (x,))
