"""The two objectives of adversarial tokenizer training, each one module with one forward, for one engine.

In: pixels in [-0.5, 0.5], (B, 3, H, W) or (B, 3, T, H, W). Out: a scalar float32 loss to call backward on,
logs as detached float32 scalars, and the reconstruction. A step is:

    loss, logs, recon = generator(pixels, discriminator, schedule);      backward; optimizer step
    loss, logs = discriminator_objective(pixels, recon.detach());        backward; optimizer step

The generator's backward leaves no gradient in the discriminator, and the codebook moves in the first line.
Weights: OmniTokenizer, arXiv 2406.09399; hinge: arXiv 1705.02894; adaptive weight: arXiv 2012.09841.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.tokenizer.config import DiscriminatorConfig, TokenizerConfig, TokenizerLossConfig
from models.tokenizer.discriminator import Discriminator, Judgement, frozen_judgement
from models.tokenizer.omni import OmniTokenizer

ADAPTIVE_MAX = 1e4


def reconstruction_loss(recon: Tensor, pixels: Tensor, config: TokenizerLossConfig) -> Tensor:
    """Mean over all values of the chosen distance, in float32."""
    recon, pixels = recon.float(), pixels.float()
    if config.reconstruction == "l1":
        return F.l1_loss(recon, pixels)
    if config.reconstruction == "l2":
        return F.mse_loss(recon, pixels)
    return F.huber_loss(recon, pixels, delta=config.huber_delta)


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E[D(fake)]."""
    return -fake_logits.float().mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))]) / 2."""
    return 0.5 * (F.relu(1.0 - real_logits.float()).mean() + F.relu(1.0 + fake_logits.float()).mean())


def feature_matching_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean over layers of the L1 distance of features (arXiv 1711.11585, eq. 4); `real` is a constant."""
    distances = [F.l1_loss(f.float(), r.detach().float()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(distances).mean()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: nn.Parameter) -> Tensor:
    """|grad of the reconstruction| / (|grad of the hinge term| + 1e-4) at `last`, detached."""
    rec = torch.autograd.grad(reconstruction, last, retain_graph=True)[0].float().norm()
    gan = torch.autograd.grad(adversarial, last, retain_graph=True)[0].float().norm()
    return (rec / (gan + 1e-4)).clamp(0.0, ADAPTIVE_MAX).detach()


def psnr(recon: Tensor, pixels: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB over all values of the batch, for a range of 1, clamped to it."""
    error = F.mse_loss(recon.detach().float().clamp(-0.5, 0.5), pixels.float())
    return -10.0 * torch.log10(error.clamp(min=1e-10))


def _network(discriminator: nn.Module) -> nn.Module:
    """The bare discriminator inside an engine's or DDP's wrapping, or inside its objective."""
    while not isinstance(discriminator, DiscriminatorObjective) and hasattr(discriminator, "module"):
        discriminator = discriminator.module
    if isinstance(discriminator, DiscriminatorObjective):
        discriminator = discriminator.discriminator
    return discriminator


class TokenizerObjective(nn.Module):
    """The generator's side: the tokenizer and its losses in one forward."""

    def __init__(self, config: TokenizerConfig, loss: TokenizerLossConfig | None = None) -> None:
        super().__init__()
        self.loss = loss or TokenizerLossConfig()
        self.tokenizer = OmniTokenizer(config)

    def forward(
        self,
        pixels: Tensor,
        discriminator: nn.Module | None = None,
        adversarial_weight: float = 1.0,
        update_codebook: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """(loss, logs, recon of pixels' shape).

        discriminator: the network, its objective, or an engine around either; None leaves it out.
        adversarial_weight: factor on the hinge and feature-matching terms, from
            `TokenizerLossConfig.adversarial_schedule(step)`; at 0 the discriminator is not run.
        update_codebook: in training mode, move the codebook with this batch.
        """
        recon, encoded = self.tokenizer(pixels, update_codebook=update_codebook)
        distance = reconstruction_loss(recon, pixels, self.loss)
        loss = self.loss.reconstruction_weight * distance + encoded.loss
        logs = {
            f"reconstruction_{self.loss.reconstruction}": distance,
            "bottleneck_loss": encoded.loss,
            "psnr": psnr(recon, pixels),
            **encoded.stats,
        }
        if discriminator is not None and adversarial_weight > 0.0:
            weighted, terms = self._adversarial(pixels, recon, _network(discriminator), loss)
            loss = loss + adversarial_weight * weighted
            logs |= terms
        logs["loss"] = loss
        return loss, {name: value.detach().float() for name, value in logs.items()}, recon

    def _adversarial(
        self, pixels: Tensor, recon: Tensor, network: nn.Module, reconstruction: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        video = pixels.ndim == 5 and pixels.shape[2] > 1
        fake: Judgement = frozen_judgement(network, recon)
        hinge = hinge_generator_loss(fake.logits)
        weight = self.loss.video_adversarial if video else self.loss.image_adversarial
        terms = {"generator_hinge": hinge}
        scaled = weight * hinge
        if self.loss.adaptive_weight and torch.is_grad_enabled():
            decoder = self.tokenizer.decoder
            last = (decoder.to_pixels if video else decoder.to_pixels_first_frame).weight
            terms["adaptive_weight"] = adaptive_weight(reconstruction, hinge, last)
            scaled = scaled * terms["adaptive_weight"]
        if self.loss.feature_matching > 0.0:
            with torch.no_grad():
                real: Judgement = network(pixels)
            terms["feature_matching"] = feature_matching_loss(real.features, fake.features)
            scaled = scaled + self.loss.feature_matching * terms["feature_matching"]
        return scaled, terms


class DiscriminatorObjective(nn.Module):
    """The discriminator's side: hinge loss on real pixels and detached reconstructions of the same shape."""

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.discriminator = Discriminator(config)

    def forward(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, logs); `fake` is detached here, whatever the caller gives."""
        if real.shape != fake.shape:
            raise ValueError(f"fake: expected the shape of real {tuple(real.shape)}, got {tuple(fake.shape)}")
        batch = torch.cat((real, fake.detach().to(real.dtype)))  # one pass, one set of gradients
        real_logits, fake_logits = self.discriminator(batch).logits.chunk(2)
        loss = hinge_discriminator_loss(real_logits, fake_logits)
        logs = {
            "discriminator_loss": loss,
            "logits_real": real_logits.mean(),
            "logits_fake": fake_logits.mean(),
        }
        return loss, {name: value.detach().float() for name, value in logs.items()}
