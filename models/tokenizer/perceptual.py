"""Distances between pictures in the features of a trained VGG-16: LPIPS and the style loss of Gram matrices.

In: pixels (B, 3, H, W) in [-0.5, 0.5], H and W of at least 16; weights from state dicts or local files, in the
names of torchvision's VGG-16 and of the published LPIPS heads. Out: one float32 distance an example (B,).
Gradients reach the pixels and nothing else: the weights are buffers outside the state_dict, so they move with
the model between devices, and no optimizer, ZeRO stage or checkpoint ever sees them. There is no dropout, so
training mode changes nothing. Under autocast the convolutions run in its type, all else in float32.
LPIPS: arXiv 1801.03924, eq. 1; style: arXiv 1603.08155, eq. 4; VGG-16: arXiv 1409.1556, configuration D.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.features.layouts import VGG_BLOCKS, VGG_WIDTHS
from omniloom.models.tokenizer import draws
from omniloom.models.tokenizer.precision import KeepsFloat32

MIN_SIDE = 2 ** (len(VGG_BLOCKS) - 1)
# LPIPS' scaling layer, for pixels in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-8  # under the root: at features of zero the gradient stays finite


class PerceptualNetwork(KeepsFloat32):
    """A frozen VGG-16 up to relu5_3 and, where given, LPIPS' five heads. Build it with `load_perceptual`.

    vgg: `features.N.weight` (out, in, 3, 3) and `features.N.bias` (out,) of the 13 convolutions.
    heads: None, or five tensors of as many non-negative weights as the layers have channels.
    """

    def __init__(self, vgg: Mapping[str, Tensor], heads: list[Tensor] | None = None) -> None:
        super().__init__()
        for name, value in vgg.items():
            self._hold(name.replace(".", "_"), value)
        self.has_heads = heads is not None
        for i, value in enumerate(heads or ()):
            self._hold(f"head_{i}", value)
        self._hold("shift", torch.tensor(SHIFT).view(3, 1, 1))
        self._hold("scale", torch.tensor(SCALE).view(3, 1, 1))

    def _hold(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.detach().to(torch.float32, copy=True), persistent=False)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Pixels (B, 3, H, W) in [-0.5, 0.5] -> the five layers' features (B, C, H / 2^i, W / 2^i), float32."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < MIN_SIDE:
            expected = f"(B, 3, H, W) of at least {MIN_SIDE}x{MIN_SIDE}"
            raise ValueError(f"pixels: expected {expected}, got {tuple(pixels.shape)}")
        x = (2.0 * pixels.float() - self.shift) / self.scale
        found = []
        for number, block in enumerate(VGG_BLOCKS):
            if number:
                x = F.max_pool2d(x, 2)
            for place in block:
                weight, bias = (getattr(self, f"features_{place}_{kind}") for kind in ("weight", "bias"))
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            found.append(x.float())
        return found

    def lpips(self, fake: list[Tensor], real: list[Tensor]) -> Tensor:
        """LPIPS of two lists from `features` -> (B,); ValueError where the network has no heads."""
        if not self.has_heads:
            raise ValueError("LPIPS needs its heads: load_perceptual(vgg, heads)")
        total: Any = 0.0
        for i, (f, r) in enumerate(zip(fake, real, strict=True)):
            squared = (unit_channels(f) - unit_channels(r)).square()
            total = total + (squared * getattr(self, f"head_{i}")).sum(1).mean((1, 2))
        return total

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """LPIPS of pixels (B, 3, H, W) in [-0.5, 0.5] -> (B,); `real` is a constant."""
        with torch.no_grad():
            target = self.features(real)
        return self.lpips(self.features(fake), target)


def unit_channels(features: Tensor) -> Tensor:
    """Features (B, C, H, W) divided by their length over the channels."""
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + EPS)


def gram_matrix(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, C), float32: products of channels, summed over places, divided by C * H * W."""
    flat = features.float().flatten(2)
    with torch.autocast(flat.device.type, enabled=False):
        return flat @ flat.mT / (flat.shape[1] * flat.shape[2])


def style_distance(fake: list[Tensor], real: list[Tensor]) -> Tensor:
    """Squared Frobenius distance of Gram matrices, summed over the layers of `features` -> (B,)."""
    pairs = zip(fake, real, strict=True)
    return cast(Tensor, sum((gram_matrix(f) - gram_matrix(r)).square().sum((1, 2)) for f, r in pairs))


def random_frames(*clips: Tensor) -> list[Tensor]:
    """One frame of each clip (B, 3, T, H, W) -> (B, 3, H, W), the same place in all clips given.

    Places are drawn one an example (`models.tokenizer.draws`), as published for LPIPS (arXiv 2406.09399). Images
    (B, 3, H, W) pass as they are, and draw nothing.
    """
    if clips[0].ndim == 4:
        return list(clips)
    batch, frames, device = clips[0].shape[0], clips[0].shape[2], clips[0].device
    places = draws.below(torch.empty(batch, 1, dtype=torch.int64, device=device), frames)[:, 0]
    rows = torch.arange(batch, device=device)
    return [clip[rows, :, places] for clip in clips]


def load_perceptual(
    vgg: Mapping[str, Tensor],
    heads: Mapping[str, Tensor] | None = None,
    *,
    vgg_source: str = "VGG-16 weights",
    heads_source: str = "LPIPS heads",
) -> PerceptualNetwork:
    """A network from state dicts.

    vgg: has `features.N.weight` and `features.N.bias` of torchvision's VGG-16; other keys are left alone.
    heads: has `lin0.model.1.weight` (as published) or `lin0.weight`, to `lin4`, each (1, C, 1, 1) or (C,). None
        gives a network for the style loss alone.
    vgg_source, heads_source: what an error calls them.
    Errors: ValueError naming the source and the key that is missing, of a wrong shape or type, or not finite.
    """
    weights, channels = {}, 3
    for width, block in zip(VGG_WIDTHS, VGG_BLOCKS, strict=True):
        for place in block:
            for kind, shape in (("weight", (width, channels, 3, 3)), ("bias", (width,))):
                key = f"features.{place}.{kind}"
                weights[key] = _tensor(vgg, (key,), (shape,), vgg_source)
            channels = width
    if heads is None:
        return PerceptualNetwork(weights)
    found = []
    for i, width in enumerate(VGG_WIDTHS):
        names = (f"lin{i}.model.1.weight", f"lin{i}.weight")
        head = _tensor(heads, names, ((1, width, 1, 1), (width,)), heads_source)
        found.append(head.reshape(width, 1, 1))
    return PerceptualNetwork(weights, found)


def _tensor(state: Mapping[str, Tensor], names: tuple[str, ...], shapes: tuple[tuple, ...], source: str) -> Tensor:
    """The first of `names` that the state has, in one of `shapes`."""
    name = next((name for name in names if name in state), None)
    if name is None:
        raise ValueError(f"{source}: {' or '.join(names)} is missing")
    value = state[name]
    if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) not in shapes:
        given = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{source}: {name}: expected floats {' or '.join(map(str, shapes))}, got {given}")
    if not value.isfinite().all():
        raise ValueError(f"{source}: {name}: expected finite numbers")
    return value


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A state dict on the CPU from a local `.safetensors` file, or one of torch.save (read as weights only).

    Errors: ValueError naming the file where it is missing, unreadable, or holds no state dict.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as error:  # the readers raise whatever a damaged file makes them trip over
        raise ValueError(f"{path}: expected weights of torch.save or safetensors: {error}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: expected a state dict, got {type(state).__name__}")
    return dict(state)
