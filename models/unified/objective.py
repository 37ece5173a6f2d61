"""What one training step of the unified model computes. In: a `Batch` and a seed. Out: the loss to
differentiate and detached figures to log. The whole step is one module with one forward pass, which is what
DeepSpeed wraps.

loss = text_weight * mean over text targets of (cross entropy + z_loss * logsumexp^2)
     + visual_weight * mean over visual targets of the mean over channels of w |D - x|^2
        (models.unified.formulations; with diffusion.multiscale, coarser scales of it are added)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.unified.batch import Batch
from models.unified.diffusion import corrupt, residual, sample_times, warn_wide_patches
from models.unified.diffusion_config import DiffusionConfig
from models.unified.formulations import formulation
from models.unified.model import UnifiedModel
from models.unified.multiscale import coarse_error

Seed = int | torch.Generator | Sequence[int]


class UnifiedObjective(nn.Module):
    """Wraps a model with its losses.

    text_weight, visual_weight  of the two means (Transfusion, arXiv 2408.11039, eq. 4: 1 and 5)
    z_loss                      weight of the squared log-partition, which keeps logits from drifting
                                (arXiv 2204.02311, section 5.1)
    """

    def __init__(
        self,
        model: UnifiedModel,
        diffusion: DiffusionConfig,
        text_weight: float = 1.0,
        visual_weight: float = 5.0,
        z_loss: float = 0.0,
    ):
        super().__init__()
        for name, value in (
            ("text_weight", text_weight),
            ("visual_weight", visual_weight),
            ("z_loss", z_loss),
        ):
            if value < 0:
                raise ValueError(f"UnifiedObjective.{name}: expected a number not below 0, got {value!r}")
        warn_wide_patches(diffusion, model.config.latent_dim, model.config.width)
        self.model, self.diffusion = model, diffusion
        self.text_weight, self.visual_weight, self.z_loss = text_weight, visual_weight, z_loss

    def noise(self, batch: Batch, seed: Seed) -> tuple[Tensor, Tensor, Tensor]:
        """Noise (B, L, C), path times (B, S) with 0 for context, and noisy latents x_t (B, L, C).

        An int seeds a generator on the batch's device. A generator on another device may be passed: what it
        draws is moved, so that a GPU run can repeat a CPU run's noise. B ints, one a row, draw each row's noise
        on the CPU from its own seed: it then depends on no other row, on no rank and on no batch size.
        """
        device = batch.latents.device
        if isinstance(seed, int | torch.Generator):
            generator = torch.Generator(device).manual_seed(seed) if isinstance(seed, int) else seed
            times = sample_times(self.diffusion, tuple(batch.segment_loss.shape), generator)
            noise = torch.randn(batch.latents.shape, generator=generator, device=generator.device)
        else:
            times, noise = self._noise_by_row(batch, seed)
        times, noise = times.to(device) * batch.segment_loss, noise.to(device)
        return noise, times, corrupt(self.diffusion, batch.latents, noise, _per_position(times, batch))

    def _noise_by_row(self, batch: Batch, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        B, L, C = batch.latents.shape
        if len(seeds) != B:
            raise ValueError(f"seed: expected {B} integers, one a row, got {len(seeds)}")
        times, noise = torch.empty(batch.segment_loss.shape), torch.empty(B, L, C)
        for row, seed in enumerate(seeds):
            generator = torch.Generator().manual_seed(seed)
            torch.randn((L, C), generator=generator, out=noise[row])
            # Always L times: how many segments the longest row of the batch has must not shift the draws.
            times[row] = sample_times(self.diffusion, (L,), generator)[:times.shape[1]]
        return times, noise

    def forward(
        self,
        batch: Batch,
        seed: int | torch.Generator,
        text_tokens: float | None = None,
        visual_tokens: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, float32 scalar, and logs: loss, text_loss, visual_loss (plain means over this batch's own
        targets), z_loss where it is used, text_tokens and visual_tokens (this batch's targets).

        text_tokens, visual_tokens: the targets to normalise by; this batch's own by default. For means over
        all of R ranks and A accumulation steps, where the engine averages gradients over both, pass the total
        of a modality's targets divided by R * A. A modality without targets adds exactly 0.
        """
        noise, times, noisy = self.noise(batch, seed)
        row, at = formulation(self.diffusion), _per_position(times, batch)
        # Context is shown as it is: sampling's prefixes know nothing of a formulation.
        seen = torch.where(batch.visual_loss[..., None], noisy * row.input_scale(at), noisy)
        logits, prediction = self.model(batch, seen, row.c_noise(times))
        num_text, num_visual = batch.tokens["text_targets"], batch.tokens["visual_targets"]

        logits = logits.float()
        entropy = F.cross_entropy(logits, batch.labels.flatten()[batch.label_index], reduction="sum")
        rest = residual(self.diffusion, prediction.float(), batch.latents, noise, at)
        error = torch.where(batch.visual_loss, rest.square().mean(dim=-1), 0.0).sum()
        if self.diffusion.multiscale > 1:
            error = error + coarse_error(rest, batch.target_spans, self.diffusion.multiscale)

        by_text, by_visual = _count(text_tokens, num_text), _count(visual_tokens, num_visual)
        loss = self.text_weight * entropy / by_text + self.visual_weight * error / by_visual
        logs = {"text_loss": entropy / max(num_text, 1), "visual_loss": error / max(num_visual, 1)}
        if self.z_loss:
            squares = logits.logsumexp(dim=-1).square().sum()
            loss = loss + self.text_weight * self.z_loss * squares / by_text
            logs["z_loss"] = squares / max(num_text, 1)
        logs = {
            "loss": loss,
            **logs,
            "text_tokens": loss.new_tensor(num_text),
            "visual_tokens": loss.new_tensor(num_visual),
        }
        return loss, {name: value.detach() for name, value in logs.items()}


def _per_position(times: Tensor, batch: Batch) -> Tensor:
    """Times (B, S) of segments -> (B, L, 1) of positions; text positions get their row's first, unused."""
    return times.gather(1, batch.segment_index.clamp(min=0))[..., None]


def _count(given: float | None, own: int) -> float:
    """0 targets everywhere divide a sum that is 0 by 1."""
    count = own if given is None else float(given)
    return count if count > 0 else 1.0
