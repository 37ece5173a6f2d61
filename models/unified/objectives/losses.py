"""The losses of pictures, one class an objective. In: a `Batch` and a seed. Out: `show` gives what the network sees of
the objective's positions; `error` takes the network's predictions and gives the sum of the errors of its targets.

    DiffusionLoss   latents and pixels: the mean over channels of w |D - x|^2 (`models.unified.diffusion.formulations`;
                    with multiscale, coarser scales of it are added)
    NextCodeLoss    the cross entropy of a code, predicted at the position before it
    MaskedCodeLoss  the cross entropy of a code where it is masked, over the masked share of its segment, and 0
                    elsewhere: each segment's mean over what is masked, and segments weigh by their size
    next_latent     `models.unified.objectives.next_latent`

Shapes: B rows, L places of a row, S visual segments of a row at most, M visual positions of the representation, K of
them in segments of the objective that are not clean context, N of those are targets, A predictions, C channels of a
value, V codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from omniloom.models.unified.batch import Batch, VisualTask
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import corrupt, residual, warn_wide_patches
from omniloom.models.unified.diffusion.formulations import formulation
from omniloom.models.unified.diffusion.multiscale import coarse_error
from omniloom.models.unified.objectives.corruption import Seed, draw_masks, draw_noise
from omniloom.models.unified.objectives.entropy import entropy_sums
from omniloom.models.unified.representations import OBJECTIVES, RGB, VisualObjective
from omniloom.models.unified.sequence import RowShare


@dataclass
class Shown:
    """The network's input at one objective's K positions.

    values  (K, C), or codes int64 (K,)
    places  int64 (A,): the flat places (b*L + l) whose predictions `error` is given
    times   float (B, S) of the segments, of a diffusion
    steps   float (B, S), how far from there a step goes (`UnifiedConfig.step_sizes`); None: nowhere
    masked  bool (K,): positions where a learned token enters instead
    asked   what the density head is asked, where the objective is by it: tensors with a row for each prediction
    extras  what else `error` needs; of a `separable` objective, tensors with a row for each prediction, or None
    share   where ranks share rows out, this one's: then `error` is given the predictions at its places alone
    """

    values: Tensor
    places: Tensor
    times: Tensor | None = None
    masked: Tensor | None = None
    asked: dict[str, Tensor] | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    share: RowShare | None = None
    steps: Tensor | None = None
    _everywhere: Tensor | None = None  # `places` of all ranks, in whole rows

    def shared_out(self, share: RowShare) -> Shown:
        """With the places and extras of this rank's predictions; values and masks stay those of whole rows."""
        which, places = share.mine(self.places)
        extras = {name: a if a is None else a.index_select(0, which) for name, a in self.extras.items()}
        asked = self.asked and {name: a.index_select(0, which) for name, a in self.asked.items()}
        return replace(self, places=places, asked=asked, extras=extras, share=share, _everywhere=self.places)

    def of_all_ranks(self, x_AC: Tensor) -> Tensor:
        """(A, C) of the predictions that `error` is given -> those of all ranks, in the order of whole rows."""
        if self.share is None or self._everywhere is None:
            return x_AC
        here = x_AC.new_zeros(self.share.rows * self.share.count, x_AC.shape[1]).index_copy(0, self.places, x_AC)
        return self.share.gathered(here).index_select(0, self._everywhere)


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """A tensor that was drawn on the host, on `device`; a GPU is not waited for."""
    return drawn.pin_memory().to(device, non_blocking=True) if drawn.device.type != device.type else drawn


def drawn(loss: Any, name: str, batch: Batch, seed: Seed) -> tuple[Tensor, ...]:
    """What `loss.draw_ahead` gives, on the batch's device: that which was drawn ahead by this name, where it was."""
    found = batch.drawn[name] if name in batch.drawn else loss.draw_ahead(batch, seed)
    return tuple(to_device(part, batch.ids.device) for part in found)


def target_weights(task: VisualTask) -> Tensor | None:
    """float32 (N,); None where all are 1."""
    return None if task.weights is None else task.weights[task.targets]


class DiffusionLoss:
    """Denoising of latents or of pixel patches by one `DiffusionConfig`."""

    def __init__(self, row: VisualObjective, config: UnifiedConfig, diffusion: DiffusionConfig):
        self.name, self.config, self.stream = row.name, diffusion, row.draw_stream
        self.law = diffusion  # of the times
        self.pixels = row.representation.name == "pixels"
        warn_wide_patches(diffusion, getattr(config, row.representation.size), config.width)

    def draw_ahead(self, batch: Batch, seed: Seed) -> tuple[Tensor, Tensor]:
        """Noise (K, C) and times (B, S) before any cap."""
        task, part = batch.tasks[self.name], batch.parts[OBJECTIVES[self.name].representation.name]
        noise_BLC, times_BS = draw_noise(self.law, batch, part.values.shape[1], seed, self.stream)
        return noise_BLC.flatten(0, 1)[torch.from_numpy(task.places).to(noise_BLC.device)], times_BS

    def show(self, batch: Batch, seed: Seed) -> Shown:
        return self._shown(batch, *drawn(self, self.name, batch, seed))

    def _shown(self, batch: Batch, noise_KC: Tensor, uncapped_BS: Tensor) -> Shown:
        task, part = batch.tasks[self.name], batch.parts[OBJECTIVES[self.name].representation.name]
        row = formulation(self.config)
        times_BS = uncapped_BS * task.caps.view_as(uncapped_BS)
        index_K, clean_KC = part.index[task.rows], part.values[task.rows]
        time_K1 = times_BS.flatten()[part.segment[task.rows]][:, None]
        noisy_KC = corrupt(self.config, clean_KC, noise_KC, time_K1)
        extras = {
            "noise": noise_KC[task.targets],
            "clean": clean_KC[task.targets],
            "time": time_K1[task.targets],
            "weights": target_weights(task),
        }
        return Shown(
            noisy_KC * row.input_scale(time_K1),
            index_K[task.targets],
            cast(Tensor, row.c_noise(times_BS)),
            extras=extras,
        )

    def error(self, prediction_NC: Tensor, shown: Shown, batch: Batch) -> Tensor:
        clean_NC, noise_NC, time_N1 = (shown.extras[name] for name in ("clean", "noise", "time"))
        residual_NC = residual(self.config, prediction_NC, clean_NC, noise_NC, time_N1)
        if (weights_N := shown.extras["weights"]) is not None:
            residual_NC = residual_NC * weights_N.sqrt()[:, None]  # every error below is a square of it
        error_N = residual_NC.square().mean(dim=-1)
        # Summed by place, so that rounding does not depend on what else the batch holds.
        zero = error_N.new_zeros(batch.ids.numel())
        total = zero.index_copy(0, shown.places, error_N).view(batch.ids.shape).sum()
        if self.config.multiscale > 1:
            grids = [grid for _, grid, _, loss in batch.tasks[self.name].segments if loss]
            patch = math.isqrt(residual_NC.shape[1] // RGB) if self.pixels else 1
            coarse = coarse_error(shown.of_all_ranks(residual_NC), grids, self.config.multiscale, patch)
            total = total + (coarse / shown.share.group.size if shown.share else coarse)  # each rank has it all
        return total


class NextCodeLoss:
    """Next token over codes, which the network sees as they are."""

    def __init__(self, row: VisualObjective, config: UnifiedConfig, diffusion: DiffusionConfig | None = None):
        self.name = row.name

    def show(self, batch: Batch, seed: Seed) -> Shown:
        task, part = batch.tasks[self.name], batch.parts["codes"]
        target_rows_N = task.rows[task.targets]
        extras = {"codes": part.values[target_rows_N], "weights": target_weights(task)}
        return Shown(part.values[task.rows], part.index[target_rows_N] - 1, extras=extras)

    def error(self, logits_NV: Tensor, shown: Shown, batch: Batch) -> Tensor:
        return entropy_sums(logits_NV, shown.extras["codes"], shown.extras["weights"])[0]

    def show_bound(self, batch: Batch, seed: Seed, times: int) -> Shown:
        """What is shown for `nats` (`models.unified.objectives.likelihoods`)."""
        return self.show(batch, seed)

    def nats(self, logits_NV: Tensor, shown: Shown) -> Tensor:
        """-log p of each target's code, (N,)."""
        return F.cross_entropy(logits_NV, shown.extras["codes"], reduction="none")


class MaskedCodeLoss:
    """Masked discrete diffusion over codes; the code behind the last is the mask."""

    def __init__(self, row: VisualObjective, config: UnifiedConfig, diffusion: DiffusionConfig | None = None):
        self.name, self.stream = row.name, row.draw_stream
        self.mask: int = getattr(config, row.representation.size)

    def draw_ahead(self, batch: Batch, seed: Seed) -> tuple[Tensor, Tensor, Tensor]:
        """Which of the K positions are masked, bool (K,); which are predicted, int64 (A,), and their weights."""
        task = batch.tasks[self.name]
        masked_K, weight_K = (torch.from_numpy(a) for a in draw_masks(batch, self.name, seed, self.stream))
        is_target = torch.tensor([loss for *_, loss in task.segments], dtype=torch.bool)
        sizes = torch.tensor([math.prod(grid) for _, grid, *_ in task.segments], dtype=torch.int64)
        predicted_A = (masked_K & is_target.repeat_interleave(sizes)).nonzero()[:, 0]
        return masked_K, predicted_A, weight_K[predicted_A]

    def show(self, batch: Batch, seed: Seed) -> Shown:
        task, part = batch.tasks[self.name], batch.parts["codes"]
        masked_K, predicted_A, weight_A = drawn(self, self.name, batch, seed)
        if task.weights is not None:
            weight_A = weight_A * task.weights[predicted_A]
        codes_K = part.values[task.rows]
        return Shown(
            torch.where(masked_K, self.mask, codes_K),
            part.index[task.rows][predicted_A],
            extras={"codes": codes_K[predicted_A], "weights": weight_A},
        )

    def error(self, logits_AV: Tensor, shown: Shown, batch: Batch) -> Tensor:
        return entropy_sums(logits_AV, shown.extras["codes"], shown.extras["weights"])[0]
