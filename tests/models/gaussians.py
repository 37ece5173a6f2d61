"""Data whose diffusion is known in closed form, for the tests of formulations and samplers."""

from __future__ import annotations

import torch
from torch import Tensor

from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.formulations import formulation

MEAN = torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
ROOT = torch.tensor([[0.5, 0.0, 0.0], [0.3, 0.4, 0.0], [-0.2, 0.1, 0.6]], dtype=torch.float64)
COVARIANCE = ROOT @ ROOT.T


class Gaussian:
    """The exact denoiser of N(MEAN, COVARIANCE) on a config's path."""

    def __init__(self, config: DiffusionConfig):
        self.path = formulation(config)
        self.variances, self.axes = torch.linalg.eigh(COVARIANCE)
        self.evaluations = 0

    def scales(self, t):
        return self.path.scales(t)

    def posterior(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """E[data | x_t] and E[noise | x_t], without a division by a or b."""
        self.evaluations += 1
        a, b = self.scales(t)
        along = (x - a * MEAN) @ self.axes / (a * a * self.variances + b * b)
        return MEAN + a * (along * self.variances) @ self.axes.T, b * along @ self.axes.T

    def denoised(self, x: Tensor, t: float) -> Tensor:
        return self.posterior(x, t)[0]

    def velocity(self, x: Tensor, t: float) -> Tensor:
        (data, noise), (da, db) = self.posterior(x, t), self.path.slopes(t)
        return da * data + db * noise

    def solution(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the probability flow takes x: along each axis, the number of deviations from the mean stays."""
        (a, b), (a_end, b_end) = self.scales(start), self.scales(end)
        ratio = ((a_end**2 * self.variances + b_end**2) / (a * a * self.variances + b * b)).sqrt()
        return a_end * MEAN + ((x - a * MEAN) @ self.axes * ratio) @ self.axes.T


class Mixture:
    """The exact denoiser of equal parts N(centre, std^2); float32. Takes scalar tensor times, with gradients."""

    def __init__(self, config: DiffusionConfig, centres: Tensor, std: float):
        self.path, self.centres, self.std = formulation(config), centres, std

    def scales(self, t):
        return self.path.scales(t)

    def denoised(self, x: Tensor, t) -> Tensor:
        a, b = self.scales(t)
        variance = a * a * self.std**2 + b * b
        away = x[:, None] - a * self.centres
        parts = (-away.square().sum(-1) / (2 * variance)).softmax(1)[..., None]
        return (parts * (self.centres + a * self.std**2 / variance * away)).sum(1)

    def velocity(self, x: Tensor, t) -> Tensor:
        (a, b), (da, db), data = self.scales(t), self.path.slopes(t), self.denoised(x, t)
        return da * data + db * (x - a * data) / b
