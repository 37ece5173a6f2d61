"""The adversary's side of tokenizer training: its loss and penalties, feature matching, LeCam, one module to train.

In: real pixels and reconstructions of the same shape in [-0.5, 0.5], (B, 3, H, W) or (B, 3, T, H, W).
Out: a scalar float32 loss to call backward on, and logs as detached float32 scalars. No gradient leaves for
the generator. What LeCam remembers lies in buffers, so that a checkpoint restores it bit for bit.
Losses and penalties: `models.tokenizer.adversarial_losses`; feature matching: arXiv 1711.11585; R1: arXiv 1801.04406;
LeCam: arXiv 2104.03310.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from omniloom.models.eager import eager
from omniloom.models.tokenizer import draws
from omniloom.models.tokenizer.adversarial_losses import slope_penalty, squared_gradient
from omniloom.models.tokenizer.discriminator import Discriminator
from omniloom.models.tokenizer.losses_config import DiscriminatorConfig
from omniloom.models.tokenizer.precision import KeepsFloat32
from omniloom.models.tokenizer.quantizers.base import ranks, share_of_all, sum_over_ranks


def feature_matching_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean over layers of the L1 distance of features (arXiv 1711.11585, eq. 4); `real` is a constant."""
    distances = [F.l1_loss(f.float(), r.detach().float()) for r, f in zip(real, fake, strict=True)]
    return torch.stack(distances).mean()


def lecam_penalty(real_logits: Tensor, fake_logits: Tensor, real_mean: Tensor, fake_mean: Tensor) -> Tensor:
    """E[(D(real) - fake_mean)^2] + E[(D(fake) - real_mean)^2]; the means are constants."""
    real, fake = real_logits.float() - fake_mean, fake_logits.float() - real_mean
    return real.square().mean() + fake.square().mean()


class LogitAverages(KeepsFloat32):
    """Exponential moving averages of the logits of real and fake, apart for images and for videos.

    The first batch of a kind sets its averages. Under torch.distributed they are those of all ranks: all must
    call with the same kind in the same step. A batch whose logits are not finite is not taken in.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2, 2, dtype=torch.float32))  # (image | video, real | fake)
        self.register_buffer("started", torch.zeros(2, dtype=torch.bool))

    @eager
    @torch.no_grad()
    def update(self, real_logits: Tensor, fake_logits: Tensor, video: bool) -> None:
        now = torch.stack((real_logits.float().mean(), fake_logits.float().mean())).detach()
        if ranks() > 1:
            now = sum_over_ranks(now * share_of_all(len(real_logits), now)) / ranks()
        kind = int(video)
        moved = torch.where(self.started[kind], self.decay * self.means[kind] + (1.0 - self.decay) * now, now)
        finite = now.isfinite().all()
        self.means[kind] = torch.where(finite, moved, self.means[kind])
        self.started[kind] |= finite

    def of(self, video: bool) -> tuple[Tensor, Tensor]:
        """The averages of (real, fake), float32 scalars."""
        real, fake = self.means[int(video)].clone()
        return real, fake


class DiscriminatorObjective(nn.Module):
    """The discriminator and its losses in one forward, with the penalties and LeCam where the config asks for them."""

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        self.discriminator = Discriminator(config)
        self.loss = self.discriminator.loss
        self.averages = LogitAverages(config.lecam_decay) if config.lecam_weight > 0.0 else None

    def forward(self, real: Tensor, fake: Tensor, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, logs); `fake` is detached here, whatever the caller gives.

        step: the optimizer step (counted from 0), by which penalties are due or not
            (`DiscriminatorConfig.takes_penalty`). They are taken in training mode alone, and what they draw they draw
            example by example (`models.tokenizer.draws`).
        logs: `discriminator_loss` (the loss alone), `logits_real`, `logits_fake`; in the steps that take them `r1` and
            `r2` (expected squared gradients) and `gradient_penalty`; `lecam`. All of them unweighted.
        """
        if real.shape != fake.shape:
            raise ValueError(f"fake: expected the shape of real {tuple(real.shape)}, got {tuple(fake.shape)}")
        batch = torch.cat((real, fake.detach().to(real.dtype)))  # one pass, one set of gradients
        real_logits, fake_logits = self.discriminator(batch).logits.chunk(2)
        loss = self.loss.discriminator(real_logits, fake_logits)
        logs = {
            "discriminator_loss": loss,
            "logits_real": real_logits.mean(),
            "logits_fake": fake_logits.mean(),
        }
        if self.averages is not None:
            video = real_logits.ndim == 5
            if self.training:
                self.averages.update(real_logits, fake_logits, video)
            logs["lecam"] = lecam_penalty(real_logits, fake_logits, *self.averages.of(video))
            loss = loss + self.config.lecam_weight * logs["lecam"]
        if self.training and self.config.takes_penalty(step):
            penalties = self._penalties(real, fake.detach())
            weights = self.config.penalty_weights
            loss = loss + self.config.r1_every * sum(weights[name] * value for name, value in penalties.items())
            logs |= penalties
        return loss, {name: value.detach().float() for name, value in logs.items()}

    @eager  # a compiled graph cannot be differentiated twice
    def _penalties(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Those that have a weight, all of it in float32."""
        wanted = self.config.penalty_weights
        with torch.autocast(real.device.type, enabled=False), torch.enable_grad():
            real, fake = real.detach().float(), fake.float()
            found = {name: self._steepness(x) for name, x in (("r1", real), ("r2", fake)) if name in wanted}
            if "gradient_penalty" in wanted:
                share = draws.uniform(real.new_empty(len(real), *[1] * (real.ndim - 1)))
                between = (share * real + (1 - share) * fake).requires_grad_()
                found["gradient_penalty"] = slope_penalty(self._logits(between), between)
        return found

    def _steepness(self, x: Tensor) -> Tensor:
        pixels = x.detach().requires_grad_()
        logits = self._logits(pixels)
        signs = draws.below(torch.empty_like(logits), 2) * 2.0 - 1.0
        return squared_gradient(logits, pixels, signs)

    def _logits(self, pixels: Tensor) -> Tensor:
        weights = {name: p.float() for name, p in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, weights, (pixels,)).logits
