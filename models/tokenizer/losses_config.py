"""Configuration of the tokenizer's training losses and of its discriminator: frozen dataclasses, no torch.

In: plain values from a pipeline's YAML (a stage's pydantic `Config` holds these classes) or from code.
Out: checked, hashable values that `TokenizerObjective` and `DiscriminatorObjective` are built from, and the
schedules over optimizer steps that the training loop asks.
Errors: `ValueError` naming the field, what was given and what was expected.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from omniloom.models.checks import Conditional, Use, require

GOLDEN_RATIO = (5**0.5 - 1) / 2
LOSSES = ("hinge", "wasserstein", "relativistic")
_LATER = {"later": True}  # came when tokenizers had been trained without it (`infra.fields.LATER`)


@dataclass(frozen=True)
class DiscriminatorConfig(Conditional):
    """PatchGAN for images and for videos, its loss, and what keeps it from winning too early."""

    USES: ClassVar = {
        "gradient_penalty": Use(lambda c: c.loss == "wasserstein", "loss: wasserstein"),
        "r1_every": Use(lambda c: bool(c.penalty_weights), "r1_gamma above 0 and of loss: wasserstein"),
        "lecam_decay": Use(lambda c: c.lecam_weight > 0, "lecam_weight above 0"),
    }

    channels: int = 64
    """Channels of the first layer, doubled per layer up to 8 times; a multiple of 4."""
    layers: int = 3
    """Layers."""
    loss: Literal["hinge", "wasserstein", "relativistic"] | None = field(default=None, metadata=_LATER)
    """Loss of both sides: hinge; wasserstein, with the gradient penalty (arXiv 1704.00028); relativistic, which pairs
    each real patch with its reconstruction and needs r1_gamma above 0 (R3GAN, arXiv 2501.05441). null: hinge."""
    r1_gamma: float = 0.0
    """Weight of R1 (arXiv 1801.04406, eq. 9): gamma / 2 times the squared gradient of the logit of a real patch by the
    pixels; with loss: relativistic of R2 too, that of a reconstructed patch. It differentiates twice, in float32."""
    gradient_penalty: float | None = field(default=None, metadata=_LATER)
    """Weight of the gradient penalty, (|gradient| - 1)^2 between real and reconstructed pixels. null: 10 with loss:
    wasserstein, as published."""
    r1_every: int = 16
    """Penalties are taken in one of so many steps, times that number (lazy regularisation, arXiv 1912.04958). Published
    with wasserstein and relativistic: 1."""
    lecam_weight: float = 0.0
    """Weight of LeCam (arXiv 2104.03310, R_LC in section 3): it pulls the logits of each side towards the other side's
    moving average."""
    lecam_decay: float = 0.99
    """Decay of those averages, in [0, 1)."""

    def __post_init__(self) -> None:
        require(self.channels >= 4 and self.channels % 4 == 0, self, "channels", "a positive multiple of 4")
        require(self.layers >= 1, self, "layers", "an integer of at least 1")
        require(self.loss in (None, *LOSSES), self, "loss", f"one of {', '.join(LOSSES)}")
        least = "above 0 with loss: relativistic" if self.loss == "relativistic" else "of at least 0"
        good = self.r1_gamma > 0.0 if self.loss == "relativistic" else self.r1_gamma >= 0.0
        require(good, self, "r1_gamma", f"a number {least}")
        weight = self.gradient_penalty
        require(weight is None or weight > 0.0, self, "gradient_penalty", "a number above 0")
        require(self.r1_every >= 1, self, "r1_every", "an integer of at least 1")
        require(self.lecam_weight >= 0.0, self, "lecam_weight", "a number of at least 0")
        require(0.0 <= self.lecam_decay < 1.0, self, "lecam_decay", "a number in [0, 1)")

    @property
    def penalty_weights(self) -> dict[str, float]:
        """Of the penalties that are taken, by their names in logs."""
        found = {"r1": 0.5 * self.r1_gamma} if self.r1_gamma > 0.0 else {}
        if self.loss == "relativistic":
            found["r2"] = 0.5 * self.r1_gamma
        if self.loss == "wasserstein":
            found["gradient_penalty"] = 10.0 if self.gradient_penalty is None else self.gradient_penalty
        return found

    def takes_penalty(self, step: int) -> bool:
        """Whether an optimizer step (counted from 0) pays the penalties: one in each `r1_every` steps.

        Its place among them goes by the golden ratio, in step with no rhythm in which images and videos take turns.
        """
        window, place = divmod(step, self.r1_every)
        return bool(self.penalty_weights) and place == int(window * GOLDEN_RATIO % 1.0 * self.r1_every)


@dataclass(frozen=True)
class TokenizerLossConfig(Conditional):
    """Weights of the generator's loss."""

    USES: ClassVar = {"huber_delta": Use(lambda c: c.reconstruction == "huber", "reconstruction: huber")}

    reconstruction: Literal["l1", "l2", "huber"] = "l1"
    """Distance of input and reconstruction."""
    reconstruction_weight: float = 4.0
    """Its weight."""
    huber_delta: float = 0.1
    """Threshold between the quadratic and the linear part of the Huber loss, in pixel values of range 1."""
    perceptual_weight: float = 0.0
    """Weight of LPIPS (arXiv 1801.03924) with a VGG-16 and the heads trained for it, which `perceptual` of the stage
    names. Published: 4."""
    style_weight: float = 0.0
    """Weight of the distance of Gram matrices (arXiv 1603.08155, eq. 4) of that VGG-16; needs no heads."""
    image_adversarial: float = 0.01
    """Weight of the generator's adversarial term for images."""
    video_adversarial: float = 0.01
    """Weight of the generator's adversarial term for videos."""
    feature_matching: float = 0.25
    """Weight of the L1 distance between discriminator features of input and reconstruction, a mean over layers.
    Published: 4. At 4 from the first step it drowns the pixels' L1 (digits at 32x32, 400 steps: 21.4 dB against 28.6 at
    0.25)."""
    adversarial_start: int = 0
    """Optimizer steps before the discriminator begins to train."""
    discriminator_warmup: int = 0
    """Optimizer steps over which it then trains alone, before the generator feels it."""
    adversarial_ramp: int = 0
    """Optimizer steps over which the adversarial terms then grow linearly to their weights."""
    adaptive_weight: bool = False
    """Scale the adversarial term by VQGAN's gradient ratio (arXiv 2012.09841, eq. 7). It reads the last layer's
    gradient, which ZeRO-3 does not hold in full: use ZeRO 0 to 2 with it."""

    def __post_init__(self) -> None:
        kinds = ("l1", "l2", "huber")
        require(self.reconstruction in kinds, self, "reconstruction", "one of l1, l2, huber")
        require(self.reconstruction_weight > 0.0, self, "reconstruction_weight", "a number above 0")
        require(self.huber_delta > 0.0, self, "huber_delta", "a number above 0")
        weights = ("perceptual_weight", "style_weight", "image_adversarial", "video_adversarial", "feature_matching")
        for name in weights:
            require(getattr(self, name) >= 0.0, self, name, "a number of at least 0")
        for name in ("adversarial_start", "discriminator_warmup", "adversarial_ramp"):
            require(getattr(self, name) >= 0, self, name, "an integer of at least 0")

    @property
    def needs_perceptual(self) -> bool:
        """Whether a term reads VGG-16 features."""
        return self.perceptual_weight > 0.0 or self.style_weight > 0.0

    def trains_discriminator(self, step: int) -> bool:
        """Whether the discriminator takes an optimizer step (counted from 0)."""
        return step >= self.adversarial_start

    def adversarial_schedule(self, step: int) -> float:
        """The factor in [0, 1] on the generator's adversarial terms at an optimizer step (counted from 0)."""
        since = step - self.adversarial_start - self.discriminator_warmup
        if since < 0:
            return 0.0
        return min(1.0, (since + 1) / self.adversarial_ramp) if self.adversarial_ramp else 1.0
