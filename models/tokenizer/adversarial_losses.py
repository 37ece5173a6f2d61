"""The losses of adversary and generator, by name, and the penalties that go with them. In: maps of logits (B, 1, ...)
of real pixels x and of their reconstructions y, patch by patch. Out: float32 scalars, means over examples and patches.

                  discriminator                               generator
    hinge         (max(0, 1 - D(x)) + max(0, 1 + D(y))) / 2   -D(y)                     arXiv 1705.02894
    wasserstein   D(y) - D(x)                                 -D(y)                     arXiv 1704.00028, eq. 3
    relativistic  softplus(D(y) - D(x))                       softplus(D(x) - D(y))     arXiv 2501.05441, eq. 2

The second keeps the slope of the discriminator at 1 (`slope_penalty`), the third both its slopes at 0, of real and of
reconstructed pixels (R1 and R2, `squared_gradient`); without these neither comes to rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-12


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """-E[D(fake)]."""
    return -fake_logits.float().mean()


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))]) / 2."""
    return 0.5 * (F.relu(1.0 - real_logits.float()).mean() + F.relu(1.0 + fake_logits.float()).mean())


def wasserstein_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E[D(fake)] - E[D(real)]."""
    return fake_logits.float().mean() - real_logits.float().mean()


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """E[softplus(-(D(better) - D(worse)))], patch by patch: of the discriminator with the real ones as the better, of
    the generator with its own."""
    return F.softplus(worse.float() - better.float()).mean()


class AdversarialLoss(NamedTuple):
    """discriminator, generator: of (real, fake) logits; compares: whether the generator's reads those of the real."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    compares: bool = False


ADVERSARIAL_LOSSES = {
    "hinge": AdversarialLoss(hinge_discriminator_loss, lambda real, fake: hinge_generator_loss(fake)),
    "wasserstein": AdversarialLoss(wasserstein_discriminator_loss, lambda real, fake: hinge_generator_loss(fake)),
    "relativistic": AdversarialLoss(relativistic_loss, lambda real, fake: relativistic_loss(fake, real), compares=True),
}


def squared_gradient(logits: Tensor, pixels: Tensor, signs: Tensor) -> Tensor:
    """E|grad_x D(x)|^2 of a map of logits (B, 1, ...) by the pixels (B, 3, ...) that they were computed from.

    Each logit judges a patch, so the mean is over examples and patches, as in the hinge loss, and a weight
    means the same at any size of picture. One backward pass gives an unbiased estimate of it: with independent
    `signs` of +-1 in the logits' shape, E|sum_p s_p grad D_p|^2 = sum_p |grad D_p|^2. Differentiable.
    """
    (gradient,) = torch.autograd.grad((logits * signs).sum(), pixels, create_graph=True)
    return gradient.square().sum() / logits.numel()


def slope_penalty(logits: Tensor, pixels: Tensor) -> Tensor:
    """E(|grad_x D(x)| - 1)^2, where D of an example is the mean of its map of logits, as in the loss (arXiv 1704.00028,
    eq. 3); `pixels` are to lie between real and fake. Differentiable."""
    means = logits.flatten(1).mean(1)
    (gradient,) = torch.autograd.grad(means.sum(), pixels, create_graph=True)
    return ((gradient.flatten(1).square().sum(1) + _TINY).sqrt() - 1).square().mean()
