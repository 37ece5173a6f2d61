"""The encoders of pictures: the visual tokenizer, and where the config names one a vision encoder.

In: decoded clips of one kind and shape. Out: `Encoded`, a clip each. Every pass has the same number of clips, the last
of a shape filled up with black ones: what a clip becomes then depends neither on those beside it nor on where a run was
interrupted, as sums of matrix products do whose shapes differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.infra.artifacts import Artifact
from omniloom.models.pixels import half_range
from omniloom.models.tokenizer.quantizers.kl import GaussianBottleneck
from omniloom.models.unified.objectives.alignment import on_frames
from omniloom.stages.checkpoints.tokenizer import load_tokenizer
from omniloom.stages.checkpoints.vision_encoder import load_encoder
from omniloom.stages.data.aspects import Aspects
from omniloom.stages.pretokenize.config import FEATURES, Config


@dataclass(frozen=True)
class Pass:
    """What a forward pass gave, on its device: floats (B, t, h, w, C), codes int64 (B, t, h, w), features float16
    (B, t, rows, columns, F); None for what there is none of."""

    latents: Tensor
    log_variances: Tensor | None
    codes: Tensor | None
    features: Tensor | None

    def segments(self, count: int) -> tuple[list[dict[str, Any]], int]:
        """Of the first `count` clips, as `stages.data.token_shards` takes them, and how many bytes each has. Waits for
        the device."""
        named = {"latents": self.latents, "log_variances": self.log_variances, "features": self.features}
        arrays = {name: value[:count].cpu().numpy() for name, value in named.items() if value is not None}
        if self.codes is not None:
            arrays["codes"] = self.codes[:count].int().cpu().numpy()
        grids = {"grid": list(arrays["latents"].shape[1:4])}
        if "features" in arrays:
            grids["feature_grid"] = list(arrays["features"].shape[1:4])
        rows = zip(*(values.reshape(count, -1) for values in arrays.values()), strict=True)
        found = [{**dict(zip(arrays, row, strict=True)), **grids} for row in rows]
        return found, sum(values.nbytes for values in arrays.values()) // count


class Encoders:
    def __init__(self, config: Config, visual: Artifact, device: str):
        self.config, self.device = config, device
        self.tokenizer = load_tokenizer(visual).to(device)
        self.encoder = load_encoder(config.features, FEATURES).to(device) if config.features else None
        self.aspects = Aspects(config.aspects, self.tokenizer.config.patch_size)
        self._shape = lru_cache(1 << 16)(self._nearest)  # many pictures have the same sides
        self.batch_size = config.batch_size or (64 if device == "cuda" else 16)

    def shape(self, item: dict, kind: str) -> tuple[int, int]:
        """(height, width) that a picture of this width and height is brought to."""
        return self._shape(item["width"], item["height"], kind)

    def _nearest(self, width: int, height: int, kind: str) -> tuple[int, int]:
        size = self.config.image_size if kind == "image" else self.config.video_size
        return self.aspects.shape(self.aspects.bucket(width, height), size)

    def clips(self, kind: str) -> int:
        """How many are encoded together: `batch_size` images, or videos of as many frames."""
        return self.batch_size if kind == "image" else max(1, self.batch_size // self.config.frames)

    @torch.no_grad()
    def encode(self, clips: list[np.ndarray], size: int) -> Pass:
        """uint8 (T, H, W, 3) each, at most `size`; the device may still be at work when this returns."""
        black = [np.zeros_like(clips[0])] * (size - len(clips)) if len(clips) < size else []
        held = torch.from_numpy(np.concatenate([*clips, *black]).reshape(size, *clips[0].shape))
        held = held.pin_memory() if self.device == "cuda" else held
        pixels = half_range(held.to(self.device, non_blocking=True).permute(0, 4, 1, 2, 3).float())
        with torch.autocast(self.device, torch.bfloat16, enabled=self.config.precision == "bf16"):
            encoded = self.tokenizer.encode(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            features = self._features(pixels, encoded.latents.shape[2])
        latents, log_variances = encoded.latents.float(), None
        if self.config.log_variances:
            _, log_variances = GaussianBottleneck.posterior(encoded.prequant.movedim(1, -1))
        return Pass(latents.movedim(1, -1), log_variances, encoded.codes, features)

    @torch.no_grad()
    def error(self, made: Pass, place: int, clip: np.ndarray) -> Tensor:
        """The sum of the squared errors of a clip's reconstruction, float64 (), for a range of 1. It is decoded alone,
        so that what it was encoded with does not count."""
        pixels = half_range(torch.from_numpy(clip).to(self.device).permute(3, 0, 1, 2)[None].float())
        with torch.autocast(self.device, torch.bfloat16, enabled=self.config.precision == "bf16"):
            recon = self.tokenizer.decode(latents=made.latents[place : place + 1].movedim(-1, 1))
        return (recon.float().reshape(pixels.shape).clamp(-0.5, 0.5) - pixels).double().square().sum()

    def _features(self, pixels: Tensor, t: int) -> Tensor | None:
        """The vision encoder's features of clips (B, 3, T, H, W) of t latent frames, float16 (B, t, h, w, F)."""
        if self.encoder is None:
            return None
        frames, patch = pixels.transpose(1, 2).flatten(0, 1), cast(int, self.encoder.config.patch_size)
        size = [max(1, round(side / patch)) * patch for side in frames.shape[2:]]
        if size != list(frames.shape[2:]):
            frames = F.interpolate(frames, size=size, mode="bicubic", align_corners=False, antialias=True)
        features = torch.cat([self.encoder(part).float() for part in frames.split(self.batch_size)])
        clips = features.unflatten(0, (len(pixels), -1))
        return torch.stack([on_frames(clip, t) for clip in clips]).half()
