"""The losses of objective `next_latent`: latents one position after the other, each by a density that is given at the
position before (GIVT, arXiv 2312.02116). In and out: as in `models.unified.objectives.losses`.

    DensityLoss           the negative log-density of the latents, in nats over their channels
    DenoisedLatentLoss    of the diffusion head, which has no likelihood: the mean over some times, and over channels,
                          of w |D - x|^2, as of a diffusion (MAR, arXiv 2406.11838, eq. 2)

What is modelled is the latents with normal noise on them, which keeps densities finite
(`models.unified.density.config`), and the network sees them so: then the densities of a picture's positions multiply to
that of the whole.

Shapes: as in `models.unified.objectives.losses`; A predictions, T times of a position.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from omniloom.models.unified.batch import Batch
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.density.config import DensityConfig, DiffusionHeadConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import corrupt, denoised, residual, sample_times
from omniloom.models.unified.diffusion.formulations import formulation
from omniloom.models.unified.objectives.corruption import Seed, draw_by_place
from omniloom.models.unified.objectives.losses import Shown, drawn, target_weights
from omniloom.models.unified.representations import OBJECTIVES, VisualObjective

_LOG_SIGMA = -5.0, 5.0  # where the bound of a likelihood is integrated


class DensityLoss:
    """Of heads with likelihoods."""

    def __init__(self, row: VisualObjective, config: UnifiedConfig, density: DensityConfig):
        self.name, self.stream, self.density = row.name, row.draw_stream, density
        self.channels = getattr(config, row.representation.size)

    def draw_ahead(self, batch: Batch, seed: Seed) -> tuple[Tensor, ...]:
        """Noise (K, C) on the latents."""

        def draw(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor]:
            return (torch.randn((*shape, self.channels), generator=generator, device=generator.device),)

        return self._at_places(batch, draw_by_place(batch, seed, self.stream, draw))

    def _at_places(self, batch: Batch, numbers: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(B, L, ...) each -> (K, ...)"""
        places = torch.from_numpy(batch.tasks[self.name].places)
        return tuple(a.flatten(0, 1)[places.to(a.device)] for a in numbers)

    def show(self, batch: Batch, seed: Seed) -> Shown:
        return self._shown(batch, drawn(self, self.name, batch, seed)[0])

    def _shown(self, batch: Batch, noise_KC: Tensor) -> Shown:
        """The latents under their noise, whose density at each target is asked of the place before it."""
        task, part = batch.tasks[self.name], batch.parts[OBJECTIVES[self.name].representation.name]
        values_KC = part.values[task.rows] + self.density.noise * noise_KC
        return Shown(
            values_KC,
            part.index[task.rows[task.targets]] - 1,
            times=values_KC.new_zeros(len(batch.ids), batch.num_segments),
            asked={"values": values_KC[task.targets]},
            extras={"weights": target_weights(task)},
        )

    def error(self, log_prob_N: Tensor, shown: Shown, batch: Batch) -> Tensor:
        return _weighted(self.nats(log_prob_N, shown) / self.channels, shown).sum()

    def show_bound(self, batch: Batch, seed: Seed, times: int) -> Shown:
        """As `show`, for `nats`."""
        return self.show(batch, seed)

    def nats(self, log_prob_N: Tensor, shown: Shown) -> Tensor:
        """The negative log-density of each target's latents under their noise, (N,), of what `show_bound` shows."""
        return -log_prob_N


class DenoisedLatentLoss(DensityLoss):
    """Of the diffusion head. A position's hidden state is used for several times (section 5 there)."""

    def __init__(
        self, row: VisualObjective, config: UnifiedConfig, density: DiffusionHeadConfig, diffusion: DiffusionConfig
    ):
        super().__init__(row, config, density)
        self.diffusion, self.times = diffusion, density.times

    def draw_ahead(self, batch: Batch, seed: Seed) -> tuple[Tensor, ...]:
        """Noise (K, C) on the latents; noise (K, T, C) and times (K, T) of the path."""
        T, C = self.times, self.channels

        def draw(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            noise = torch.randn((*shape, 1 + T, C), generator=generator, device=generator.device)
            return noise[..., 0, :], noise[..., 1:, :], sample_times(self.diffusion, (*shape, T), generator)

        return self._at_places(batch, draw_by_place(batch, seed, self.stream, draw))

    def show(self, batch: Batch, seed: Seed) -> Shown:
        noise_KC, path_KTC, times_KT = drawn(self, self.name, batch, seed)
        return self._corrupted(batch, noise_KC, path_KTC, times_KT)

    def _corrupted(self, batch: Batch, noise_KC: Tensor, path_KTC: Tensor, times_KT: Tensor) -> Shown:
        shown, targets = self._shown(batch, noise_KC), batch.tasks[self.name].targets
        assert shown.asked is not None
        clean_N1C, path_NTC, time_NT1 = shown.asked["values"][:, None], path_KTC[targets], times_KT[targets][..., None]
        row = formulation(self.diffusion)
        noisy_NTC = corrupt(self.diffusion, clean_N1C, path_NTC, time_NT1)
        told = row.c_noise(time_NT1)
        assert isinstance(told, Tensor)
        shown.asked = {"values": noisy_NTC * row.input_scale(time_NT1), "times": told[..., 0]}
        shown.extras |= {"clean": clean_N1C, "path": path_NTC, "time": time_NT1}
        return shown

    def error(self, prediction_NTC: Tensor, shown: Shown, batch: Batch) -> Tensor:
        clean_N1C, path_NTC, time_NT1 = (shown.extras[name] for name in ("clean", "path", "time"))
        residual_NTC = residual(self.diffusion, prediction_NTC, clean_N1C, path_NTC, time_NT1)
        return _weighted(residual_NTC.square().mean(dim=(-2, -1)), shown).sum()

    def show_bound(self, batch: Batch, seed: Seed, times: int) -> Shown:
        """So many times for each position, stratified evenly over the logarithm of the noise level."""
        low, high = _LOG_SIGMA

        def draw(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            noise = torch.randn((*shape, 1 + times, self.channels), generator=generator, device=generator.device)
            unit = torch.rand((*shape, times), generator=generator, device=generator.device)
            strata = (torch.arange(times, device=unit.device) + unit) / times
            return noise[..., 0, :], noise[..., 1:, :], formulation(self.diffusion).time(low + (high - low) * strata)

        numbers = draw_by_place(batch, seed, self.stream, draw)
        return self._corrupted(batch, *(a.to(batch.ids.device) for a in self._at_places(batch, numbers)))

    def nats(self, prediction_NTC: Tensor, shown: Shown) -> Tensor:
        """An upper bound of the negative log-density, (N,), estimated without bias of what `show_bound` shows: the
        variational bound of a diffusion in continuous time (arXiv 2107.00630, eq. 11-17), with s the noise level,

            E |x - D(x + s e; s)|^2 / s^2 over log s, from the least to the largest level
            + the entropy of what the least level leaves open + KL(N(x, s^2) || N(0, 1 + s^2)) at the largest
        """
        clean_N1C, path_NTC, time_NT1 = (shown.extras[name] for name in ("clean", "path", "time"))
        noisy_NTC = corrupt(self.diffusion, clean_N1C, path_NTC, time_NT1)
        a, b = formulation(self.diffusion).scales(time_NT1)
        missed_NTC = denoised(self.diffusion, prediction_NTC, noisy_NTC, time_NT1) - clean_N1C
        (low, high), C = _LOG_SIGMA, self.channels
        path_N = (high - low) * (missed_NTC * a / b).square().sum(-1).mean(-1)
        left_open = 0.5 * C * (math.log(2 * math.pi * math.e) + 2 * low)
        variance, squares_N = math.exp(2 * high), clean_N1C.square().sum((-2, -1))
        prior_N = 0.5 * (C * math.log1p(1 / variance) + (C * variance + squares_N) / (1 + variance) - C)
        return path_N + left_open + prior_N


def _weighted(error_N: Tensor, shown: Shown) -> Tensor:
    weights_N = shown.extras["weights"]
    return error_N if weights_N is None else error_N * weights_N


def next_latent_loss(row: VisualObjective, config: UnifiedConfig, diffusion: DiffusionConfig) -> DensityLoss:
    """The loss that fits the model's head. ValueError for a model that has none."""
    if config.density is None:
        raise ValueError(f"{row.name}: the model has no density head")
    if isinstance(config.density, DiffusionHeadConfig):
        return DenoisedLatentLoss(row, config, config.density, diffusion)
    return DensityLoss(row, config, config.density)
