"""The generator's side of adversarial tokenizer training: the tokenizer and its losses, one module with one forward.

In: pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, T, H, W). Out: a scalar float32 loss to call backward on,
logs as detached float32 scalars, and the reconstruction. A step, with `critic` a `DiscriminatorObjective`:

    loss, logs, recon = generator(pixels, critic, config.adversarial_schedule(step));   backward; optimizer step
    if config.trains_discriminator(step):
        loss, logs = critic(pixels, recon.detach(), step);                              backward; optimizer step

The generator's backward leaves no gradient in the discriminator or the perceptual network, and the codebook
moves in the first line alone.
Weights: OmniTokenizer, arXiv 2406.09399; adaptive weight: arXiv 2012.09841.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.tokenizer.adversarial import DiscriminatorObjective, feature_matching_loss
from omniloom.models.tokenizer.build import AnyTokenizerConfig, build_tokenizer
from omniloom.models.tokenizer.discriminator import Discriminator, Judgement, frozen_judgement
from omniloom.models.tokenizer.losses_config import TokenizerLossConfig
from omniloom.models.tokenizer.perceptual import PerceptualNetwork, random_frames, style_distance
from omniloom.models.tokenizer.quantizers.base import ranks, share_of_all, sum_over_ranks
from omniloom.models.tokenizer.semantic import SemanticAlignment

ADAPTIVE_MAX = 1e4


def reconstruction_loss(recon: Tensor, pixels: Tensor, config: TokenizerLossConfig) -> Tensor:
    """Mean over all values of the chosen distance, in float32."""
    recon, pixels = recon.float(), pixels.float()
    if config.reconstruction == "l1":
        return F.l1_loss(recon, pixels)
    if config.reconstruction == "l2":
        return F.mse_loss(recon, pixels)
    return F.huber_loss(recon, pixels, delta=config.huber_delta)


def adaptive_weight(reconstruction: Tensor, other: Tensor, last: Tensor, examples: int = 1) -> Tensor:
    """|grad of the reconstruction| / (|grad of the other term| + 1e-4) at `last`, detached; both terms are means
    over this rank's `examples`, and the gradients those of the means over all ranks'. Every rank must call it."""
    gradients = [torch.autograd.grad(t, last, retain_graph=True)[0].float() for t in (reconstruction, other)]
    if ranks() > 1:
        both = torch.stack(gradients)
        gradients = list(sum_over_ranks(both * share_of_all(examples, both)) / ranks())
    rec, own = (gradient.norm() for gradient in gradients)
    return (rec / (own + 1e-4)).clamp(0.0, ADAPTIVE_MAX).detach()


def psnr(recon: Tensor, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over all values of the batch, for a range of 1, clamped to it."""
    error = F.mse_loss(recon.detach().float().clamp(-0.5, 0.5), pixels.float())
    return -10.0 * torch.log10(error.clamp(min=1e-10))


def _network(discriminator: nn.Module) -> Discriminator:
    """The bare discriminator inside an engine's or DDP's wrapping, or inside its objective."""
    while not isinstance(discriminator, DiscriminatorObjective) and hasattr(discriminator, "module"):
        discriminator = discriminator.module
    if isinstance(discriminator, DiscriminatorObjective):
        discriminator = discriminator.discriminator
    return cast(Discriminator, discriminator)


class TokenizerObjective(nn.Module):
    """The generator's side: the tokenizer and its losses in one forward.

    perceptual: the frozen network of the LPIPS and style losses, from `models.tokenizer.perceptual`; ValueError
        where a weight above 0 asks for it and it is not given, or has no heads for LPIPS.
    alignment: makes the alignment of the tokenizer's latents, given their channels (`models.tokenizer.semantic`).
    """

    def __init__(
        self,
        config: AnyTokenizerConfig,
        loss: TokenizerLossConfig | None = None,
        perceptual: PerceptualNetwork | None = None,
        alignment: Callable[[int], SemanticAlignment] | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss = loss or TokenizerLossConfig()
        for name in ("perceptual_weight", "style_weight"):
            if getattr(loss, name) > 0.0 and perceptual is None:
                raise ValueError(f"TokenizerLossConfig.{name}: {getattr(loss, name)} needs VGG-16 weights: none given")
        if perceptual is not None and loss.perceptual_weight > 0.0 and not perceptual.has_heads:
            raise ValueError(
                f"TokenizerLossConfig.perceptual_weight: {loss.perceptual_weight} needs LPIPS heads, "
                "and the network has none"
            )
        self.tokenizer = build_tokenizer(config)
        self.perceptual = perceptual if loss.needs_perceptual else None
        self.alignment = alignment(self.tokenizer.latent_dim) if alignment else None

    def forward(
        self,
        pixels: Tensor,
        discriminator: nn.Module | None = None,
        adversarial_weight: float = 1.0,
        update_codebook: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(loss, logs, recon of pixels' shape).

        discriminator: the network, its objective, or an engine around either; None leaves it out.
        adversarial_weight: factor on the adversarial and feature-matching terms, from
            `TokenizerLossConfig.adversarial_schedule(step)`; at 0 the discriminator is not run.
        update_codebook: in training mode, move the codebook with this batch.
        """
        recon, encoded = self.tokenizer(pixels, update_codebook=update_codebook)
        distance = reconstruction_loss(recon, pixels, self.loss)
        rebuilt = self.loss.reconstruction_weight * distance
        logs = {
            f"reconstruction_{self.loss.reconstruction}": distance,
            "bottleneck_loss": encoded.loss,
            "psnr": psnr(recon, pixels),
            **encoded.stats,
        }
        if self.perceptual is not None:
            weighted, terms = self._perceptual(self.perceptual, pixels, recon)
            rebuilt = rebuilt + weighted
            logs |= terms
        loss = rebuilt + encoded.loss
        if self.alignment is not None:
            weighted, terms = self._aligned(self.alignment, pixels, encoded.z_q, rebuilt)
            loss = loss + weighted
            logs |= terms
        if discriminator is not None and adversarial_weight > 0.0:
            weighted, terms = self._adversarial(pixels, recon, _network(discriminator), loss)
            loss = loss + adversarial_weight * weighted
            logs |= terms
        logs["loss"] = loss
        return loss, {name: value.detach().float() for name, value in logs.items()}, recon

    def _aligned(
        self, alignment: SemanticAlignment, pixels: Tensor, z: Tensor, reconstruction: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both terms, scaled so that their gradient at the encoder's last matrix is as long as the reconstruction's
        (arXiv 2501.01423, equation 7), and weighted."""
        cosine, distances = alignment(pixels, z[:, :, 0])
        terms = {"alignment_cosine": cosine, "alignment_distance": distances}
        scaled = alignment.weight * (cosine + distances)
        if torch.is_grad_enabled():
            last = self.tokenizer.pre_vq.weight
            terms["alignment_weight"] = adaptive_weight(reconstruction, cosine + distances, last, len(pixels))
            scaled = scaled * terms["alignment_weight"]
        return scaled, terms

    def _perceptual(
        self, network: PerceptualNetwork, pixels: Tensor, recon: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        frames, recon_frames = random_frames(pixels, recon)
        with torch.no_grad():
            real = network.features(frames)
        fake = network.features(recon_frames)
        terms: dict[str, Tensor] = {}
        weighted: Any = 0.0
        if self.loss.perceptual_weight > 0.0:
            terms["lpips"] = network.lpips(fake, real).mean()
            weighted = weighted + self.loss.perceptual_weight * terms["lpips"]
        if self.loss.style_weight > 0.0:
            terms["style"] = style_distance(fake, real).mean()
            weighted = weighted + self.loss.style_weight * terms["style"]
        return weighted, terms

    def _adversarial(
        self, pixels: Tensor, recon: Tensor, network: Discriminator, reconstruction: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        video = pixels.ndim == 5 and pixels.shape[2] > 1
        fake: Judgement = frozen_judgement(network, recon)
        against, real = network.loss, None
        if against.compares or self.loss.feature_matching > 0.0:
            with torch.no_grad():
                real = network(pixels)
        term = against.generator(real.logits if real else fake.logits, fake.logits)
        weight = self.loss.video_adversarial if video else self.loss.image_adversarial
        terms = {f"generator_{network.kind}": term}
        scaled = weight * term
        if self.loss.adaptive_weight and torch.is_grad_enabled():
            terms["adaptive_weight"] = adaptive_weight(reconstruction, term, self._last_weight(video), len(pixels))
            scaled = scaled * terms["adaptive_weight"]
        if real and self.loss.feature_matching > 0.0:
            terms["feature_matching"] = feature_matching_loss(real.features, fake.features)
            scaled = scaled + self.loss.feature_matching * terms["feature_matching"]
        return scaled, terms

    def _last_weight(self, video: bool) -> nn.Parameter:
        """The matrix that makes the decoder's tokens into pixels, of a later frame or of a first one."""
        decoder = self.tokenizer.decoder
        head = decoder.to_pixels if video else decoder.to_pixels_first_frame
        return next(p for p in head.parameters() if p.ndim == 2)
