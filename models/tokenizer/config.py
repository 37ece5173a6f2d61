"""Configuration of the visual tokenizer: frozen dataclasses, standard library only.

In: plain values from a pipeline's YAML (a stage's pydantic `Config` holds these classes) or from code.
Out: checked, hashable values that `OmniTokenizer`, `Discriminator` and the objectives are built from.
Errors: `ValueError` naming the field, what was given and what was expected.
Figures: OmniTokenizer, arXiv 2406.09399 (the defaults are the published joint configuration).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.tokenizer.checks import require
from models.tokenizer.quantizers.config import QuantizerConfig

SPATIAL_KINDS = {"t": "plain", "w": "window"}


@dataclass(frozen=True)
class TokenizerConfig:
    """OmniTokenizer's shape.

    patch_size, temporal_patch: pixels a side, and frames, of one token after the first frame.
    width, heads, head_dim: of every attention block (heads * head_dim may differ from width).
    mlp_width: inner width of the GEGLU feed-forward; 0 takes 8/3 of the width, rounded up to a multiple of 8.
    spatial_layers, decoder_spatial_layers: one letter a block, `t` plain attention, `w` window attention.
    temporal_layers: causal blocks over time, as many in the encoder as in the decoder.
    window: tokens a side of an attention window.
    patch_norm: LayerNorm on the pixels of each patch, as published. It takes a patch's brightness and
        contrast away before the first weight sees them, so it is off by default.
    """

    patch_size: int = 8
    temporal_patch: int = 4
    width: int = 512
    heads: int = 8
    head_dim: int = 64
    mlp_width: int = 0
    spatial_layers: str = "ttww"
    temporal_layers: int = 4
    decoder_spatial_layers: str = "tttt"
    window: int = 8
    patch_norm: bool = False
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)

    def __post_init__(self) -> None:
        for name in ("patch_size", "temporal_patch", "width", "heads", "head_dim", "window"):
            require(getattr(self, name) >= 1, self, name, "an integer of at least 1")
        require(self.head_dim % 4 == 0, self, "head_dim", "a multiple of 4 (2-D rotary positions)")
        require(self.mlp_width >= 0, self, "mlp_width", "an integer of at least 0")
        require(self.temporal_layers >= 0, self, "temporal_layers", "an integer of at least 0")
        for name in ("spatial_layers", "decoder_spatial_layers"):
            value = getattr(self, name)
            require(bool(value) and set(value) <= set(SPATIAL_KINDS), self, name, "letters out of t and w")

    @property
    def inner_width(self) -> int:
        """Width inside the feed-forward."""
        return self.mlp_width or -(-8 * self.width // 24) * 8


@dataclass(frozen=True)
class DiscriminatorConfig:
    """PatchGAN for images and for videos: `channels` in the first layer, doubled per layer up to 8 times."""

    channels: int = 64
    layers: int = 3

    def __post_init__(self) -> None:
        require(self.channels >= 4 and self.channels % 4 == 0, self, "channels", "a positive multiple of 4")
        require(self.layers >= 1, self, "layers", "an integer of at least 1")


@dataclass(frozen=True)
class TokenizerLossConfig:
    """Weights of the generator's loss.

    reconstruction: `l1`, `l2` or `huber` (with `huber_delta`, in pixel units of a range of 1).
    image_adversarial, video_adversarial: weight of the hinge generator term for 4-D and for 5-D batches.
    feature_matching: weight of the L1 distance between discriminator features of input and reconstruction, a
        mean over layers. Published: 4. At 4 from the first step it drowns the pixels' L1 (digits at 32x32,
        400 steps: 21.4 dB against 28.6 at 0.25).
    adversarial_start, adversarial_ramp: optimizer steps before the adversarial terms begin, and over which
        they then grow linearly to their weights (`adversarial_schedule`).
    adaptive_weight: scale the hinge term by VQGAN's gradient ratio (arXiv 2012.09841, eq. 7). It reads the
        last layer's gradient, which ZeRO-3 does not hold in full: use ZeRO 0 to 2 with it.
    """

    reconstruction: Literal["l1", "l2", "huber"] = "l1"
    reconstruction_weight: float = 4.0
    huber_delta: float = 0.1
    image_adversarial: float = 0.01
    video_adversarial: float = 0.01
    feature_matching: float = 0.25
    adversarial_start: int = 0
    adversarial_ramp: int = 0
    adaptive_weight: bool = False

    def __post_init__(self) -> None:
        kinds = ("l1", "l2", "huber")
        require(self.reconstruction in kinds, self, "reconstruction", "one of l1, l2, huber")
        require(self.reconstruction_weight > 0.0, self, "reconstruction_weight", "a number above 0")
        require(self.huber_delta > 0.0, self, "huber_delta", "a number above 0")
        for name in ("image_adversarial", "video_adversarial", "feature_matching"):
            require(getattr(self, name) >= 0.0, self, name, "a number of at least 0")
        for name in ("adversarial_start", "adversarial_ramp"):
            require(getattr(self, name) >= 0, self, name, "an integer of at least 0")

    def adversarial_schedule(self, step: int) -> float:
        """The factor in [0, 1] on the adversarial terms at an optimizer step (counted from 0)."""
        if step < self.adversarial_start:
            return 0.0
        if self.adversarial_ramp == 0:
            return 1.0
        return min(1.0, (step - self.adversarial_start + 1) / self.adversarial_ramp)
