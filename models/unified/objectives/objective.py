"""What one training step of the unified model computes. In: a `Batch` and a seed. Out: the loss to
differentiate and detached figures to log. The whole step is one module with one forward pass, which is what
DeepSpeed wraps.

loss = text_weight * mean over text targets of (cross entropy + z_loss * logsumexp^2)
     + sum over the objectives of weight * mean over the objective's target positions of its error, which is of
       latent_diffusion, pixel_diffusion   the mean over channels of w |D - x|^2
                          (models.unified.formulations; with multiscale, coarser scales of it are added)
       next_code          the cross entropy of the code, asked of the position before it
       masked_code        the cross entropy of the code where it is masked, over the masked share of its segment, and 0
                          elsewhere: each segment's mean over what is masked, and segments weigh by their size
     + in training with an alignment, its weight * mean over the diffusions' target positions that have features of
       their distance from hidden states (models.unified.alignment)
The error of a target is multiplied by its segment's weight; the means still divide by the number of targets, so that a
weight of 2 counts a target twice and leaves the others as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omniloom.models.extensions import resolve
from omniloom.models.unified.batch import Batch
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import PIXEL_DIFFUSION, DiffusionConfig
from omniloom.models.unified.diffusion.diffusion import corrupt, residual, warn_wide_patches
from omniloom.models.unified.diffusion.formulations import formulation
from omniloom.models.unified.diffusion.multiscale import coarse_error
from omniloom.models.unified.llama.load import is_text_parameter
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.alignment import FeatureAlignment, alignment_error
from omniloom.models.unified.objectives.corruption import Seed, draw_masks, draw_noise, draw_patch_masks
from omniloom.models.unified.representations import OBJECTIVES, RGB, VisualObjective, objective_row


@dataclass
class Shown:
    """What an objective shows the network: of its task's K positions `values`, (K, C) or codes (K,); `times` (B, S)
    of its segments, of a diffusion; `asked`, the flat places (A,) whose predictions `error` wants; `masked`, bool (K,),
    where a learned token enters instead; and what else `error` needs."""

    values: Tensor
    asked: Tensor
    times: Tensor | None = None
    masked: Tensor | None = None
    kept: dict[str, Any] = field(default_factory=dict)


def _moved(drawn: Tensor, device: torch.device) -> Tensor:
    """What was drawn on the host to a GPU, whose work so far is not waited for."""
    return drawn.pin_memory().to(device, non_blocking=True) if drawn.device.type != device.type else drawn


class DiffusionLoss:
    """Denoising of latents or of pixel patches by one `DiffusionConfig`."""

    def __init__(self, row: VisualObjective, config: UnifiedConfig, diffusion: DiffusionConfig):
        self.name, self.config, self.stream = row.name, diffusion, row.draw_stream
        self.pixels = row.representation.name == "pixels"
        warn_wide_patches(diffusion, getattr(config, row.representation.size), config.width)

    def show(self, batch: Batch, seed: Seed) -> Shown:
        task, part = batch.tasks[self.name], batch.parts[OBJECTIVES[self.name].representation.name]
        device, row = batch.ids.device, formulation(self.config)
        noise, drawn = draw_noise(self.config, batch, part.values.shape[1], seed, self.stream)
        noise, drawn = (_moved(drawn, device) for drawn in (noise, drawn))
        times = drawn * task.caps.view_as(drawn)
        index = part.index[task.rows]
        noise, clean = noise.flatten(0, 1)[index], part.values[task.rows]
        at = times.flatten()[part.segment[task.rows]][:, None]
        noisy = corrupt(self.config, clean, noise, at)
        kept = {
            "noise": noise[task.targets],
            "clean": clean[task.targets],
            "at": at[task.targets],
            "noisy": noisy,
            "weights": _chosen(task.weights, task.targets),
        }
        return Shown(noisy * row.input_scale(at), index[task.targets], cast(Tensor, row.c_noise(times)), kept=kept)

    def error(self, prediction: Tensor, shown: Shown, batch: Batch) -> Tensor:
        rest = residual(self.config, prediction, shown.kept["clean"], shown.kept["noise"], shown.kept["at"])
        if (weights := shown.kept["weights"]) is not None:
            rest = rest * weights.sqrt()[:, None]  # every error below is a square of it
        error = rest.square().mean(dim=-1)
        # Summed by place, so that rounding does not depend on what else the batch holds.
        total = error.new_zeros(batch.ids.numel()).index_copy(0, shown.asked, error).view(batch.ids.shape).sum()
        if self.config.multiscale > 1:
            grids = [grid for _, grid, _, loss in batch.tasks[self.name].segments if loss]
            patch = math.isqrt(rest.shape[1] // RGB) if self.pixels else 1
            total = total + coarse_error(rest, grids, self.config.multiscale, patch)
        return total


class NextCodeLoss:
    """Next token over codes: the codes are shown as they are."""

    def __init__(self, row: VisualObjective, config: UnifiedConfig, diffusion: DiffusionConfig | None = None):
        self.name = row.name

    def show(self, batch: Batch, seed: Seed) -> Shown:
        task, part = batch.tasks[self.name], batch.parts["codes"]
        rows = task.rows[task.targets]
        kept = {"codes": part.values[rows], "weights": _chosen(task.weights, task.targets)}
        return Shown(part.values[task.rows], part.index[rows] - 1, kept=kept)

    def error(self, logits: Tensor, shown: Shown, batch: Batch) -> Tensor:
        return _entropy(logits, shown.kept["codes"], shown.kept["weights"])


class MaskedCodeLoss:
    """Masked discrete diffusion over codes; the code behind the last stands for none."""

    def __init__(self, row: VisualObjective, config: UnifiedConfig, diffusion: DiffusionConfig | None = None):
        self.name, self.stream = row.name, row.draw_stream
        self.mask: int = getattr(config, row.representation.size)

    def show(self, batch: Batch, seed: Seed) -> Shown:
        task, part, device = batch.tasks[self.name], batch.parts["codes"], batch.ids.device
        masked, weight = (torch.from_numpy(a) for a in draw_masks(batch, self.name, seed, self.stream))
        losses, sizes = [loss for *_, loss in task.segments], [grid for _, grid, *_ in task.segments]
        is_target = torch.tensor(losses, dtype=torch.bool).repeat_interleave(
            torch.tensor([math.prod(grid) for grid in sizes], dtype=torch.int64)
        )
        chosen = (masked & is_target).nonzero()[:, 0]
        codes, weight, wanted = part.values[task.rows], _moved(weight[chosen], device), _moved(chosen, device)
        if task.weights is not None:
            weight = weight * task.weights[wanted]
        return Shown(
            torch.where(_moved(masked, device), self.mask, codes),
            part.index[task.rows][wanted],
            kept={"codes": codes[wanted], "weights": weight},
        )

    def error(self, logits: Tensor, shown: Shown, batch: Batch) -> Tensor:
        return _entropy(logits, shown.kept["codes"], shown.kept["weights"])


class UnifiedObjective(nn.Module):
    """Wraps a model with its losses.

    diffusion        of latents; pixel_diffusion: of pixels
    objectives       those that are trained, by name; the model has their representations and no others
    text_weight, visual_weight  of text's mean and of a diffusion's (Transfusion, arXiv 2408.11039, eq. 4: 1 and 5)
    objective_weights  by objective; one that is not named has visual_weight where it is a diffusion, else text_weight
    z_loss           weight of the squared log-partition, which keeps logits from drifting
                     (arXiv 2204.02311, section 5.1); of text
    alignment        projects hidden states onto a frozen encoder's features, or None; alignment_weight: of its loss;
                     alignment_layer: the number of blocks behind which the states are taken, a third of them by default
    """

    def __init__(
        self,
        model: UnifiedModel,
        diffusion: DiffusionConfig,
        text_weight: float = 1.0,
        visual_weight: float = 5.0,
        z_loss: float = 0.0,
        *,
        pixel_diffusion: DiffusionConfig = PIXEL_DIFFUSION,
        objectives: Sequence[str] = ("latent_diffusion",),
        objective_weights: Mapping[str, float] | None = None,
        alignment: FeatureAlignment | None = None,
        alignment_weight: float = 0.5,
        alignment_layer: int | None = None,
    ):
        super().__init__()
        weights = {
            name: text_weight if objective_row(name).representation.discrete else visual_weight for name in objectives
        }
        unknown = set(objective_weights or {}) - set(weights)
        if unknown:
            raise ValueError(f"UnifiedObjective.objective_weights: {', '.join(sorted(unknown))} is not trained")
        weights |= objective_weights or {}
        for name, value in (
            ("text_weight", text_weight),
            ("visual_weight", visual_weight),
            ("z_loss", z_loss),
            ("alignment_weight", alignment_weight),
            *weights.items(),
        ):
            if value < 0:
                raise ValueError(f"UnifiedObjective.{name}: expected a number not below 0, got {value!r}")
        config = model.config
        needed = {OBJECTIVES[name].representation.name for name in objectives}
        if needed != set(config.representations):
            has, wants = (", ".join(sorted(names)) or "none" for names in (config.representations, needed))
            raise ValueError(f"UnifiedObjective.objectives: the model has {has}, the objectives are on {wants}")
        self.model, self.weights, self.text_weight, self.z_loss = model, weights, text_weight, z_loss
        self._entropy = _entropy
        diffusions = {"latents": diffusion, "pixels": pixel_diffusion}
        self.losses: dict[str, Any] = {
            name: resolve(row.loss)(row, config, diffusions.get(row.representation.name))
            for name, row in OBJECTIVES.items()
            if name in weights
        }
        self.alignment, self.alignment_weight = alignment, alignment_weight
        self.alignment_layer = max(1, config.layers // 3) if alignment_layer is None else alignment_layer
        if not 1 <= self.alignment_layer <= config.layers:
            raise ValueError(f"UnifiedObjective.alignment_layer: expected 1 to {config.layers}, got {alignment_layer}")
        if alignment and all(OBJECTIVES[name].representation.discrete for name in self.losses):
            raise ValueError("UnifiedObjective.alignment: expected None without a diffusion, whose targets it is of")

    def compile_parts(self) -> None:
        """Compile the blocks (`UnifiedModel.compile_blocks`) and the text loss, which eagerly reads and writes the
        logits, the largest tensor of a step, over and over. For training alone."""
        self.model.compile_blocks()
        self._entropy = torch.compile(_entropy, dynamic=True)  # targets differ in number from batch to batch

    def show(self, batch: Batch, seed: Seed) -> dict[str, Shown]:
        """What each objective shows the network."""
        for name, task in batch.tasks.items():
            if len(task.targets) and name not in self.losses:
                raise ValueError(f"batch: holds targets of {name}; trained are {', '.join(self.losses) or 'none'}")
        shown = {name: loss.show(batch, seed) for name, loss in self.losses.items()}
        config = self.model.config
        if self.training and config.patch_mask_high > 0:
            for name in shown:
                if shown[name].times is not None:
                    stream = OBJECTIVES[name].mask_stream
                    masked = draw_patch_masks(config.patch_mask_low, config.patch_mask_high, batch, name, seed, stream)
                    shown[name].masked = _moved(torch.from_numpy(masked), batch.ids.device)
        return shown

    def predict(
        self, batch: Batch, shown: Mapping[str, Shown], kept: dict[int, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The network's text logits (M, V), and predictions (A, C) by objective; kept as in `UnifiedModel.backbone`."""
        values = {name: part.values for name, part in batch.parts.items()}
        times: dict[str, Tensor] = {}
        masked: dict[str, Tensor] = {}
        asked: dict[str, list[Tensor]] = {name: [] for name in batch.parts}
        for name, what in shown.items():
            kind = OBJECTIVES[name].representation.name
            values[kind] = values[kind].index_copy(0, batch.tasks[name].rows, what.values)
            asked[kind].append(what.asked)
            if what.times is not None:
                times[kind] = what.times
            if what.masked is not None:
                none = torch.zeros_like(batch.parts[kind].index, dtype=torch.bool)
                masked[kind] = none.index_copy(0, batch.tasks[name].rows, what.masked)
        logits, outputs = self.model(
            batch, values, times, {kind: torch.cat(places) for kind, places in asked.items()}, masked, kept=kept
        )
        rest = {kind: list(outputs[kind].split([len(p) for p in places])) for kind, places in asked.items()}
        return logits, {name: rest[OBJECTIVES[name].representation.name].pop(0) for name in shown}

    def forward(
        self, batch: Batch, seed: Seed, counts: Mapping[str, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, float32 scalar, and logs: loss, text_loss, z_loss where it is used, and the error of each objective
        as {objective}_loss, or as visual_loss where there is only one, and alignment_loss: their sums over this batch's
        own targets, by its number of targets.

        counts  the targets to normalise by, as in `Batch.targets`; this batch's own by default. For means over
                all of R ranks and A accumulation steps, where the engine averages gradients over both, pass the total
                of each divided by R * A. What has no targets adds exactly 0.
        """
        shown = self.show(batch, seed)
        alignment = self.alignment if self.training else None
        kept = {self.alignment_layer: torch.empty(0)} if alignment else {}
        logits, predictions = self.predict(batch, shown, kept)
        own, by = batch.targets, {name: _count(counts, name, batch) for name in ("text", *self.losses)}

        entropy = self._entropy(logits, batch.labels.flatten()[batch.label_index], batch.label_weights)
        loss = self.text_weight * entropy / by["text"]
        logs = {"text_loss": entropy / max(own["text"], 1)}
        for name, term in self.losses.items():
            error = term.error(predictions[name].float(), shown[name], batch)
            loss = loss + self.weights[name] * error / by[name]
            logs[loss_name(name, self.losses)] = error / max(own[name], 1)
        if self.z_loss:
            squares = logits.float().logsumexp(dim=-1).square()
            squares = (squares if batch.label_weights is None else squares * batch.label_weights).sum()
            loss = loss + self.text_weight * self.z_loss * squares / by["text"]
            logs["z_loss"] = squares / max(own["text"], 1)
        if alignment:
            error = alignment_error(alignment, kept[self.alignment_layer].flatten(0, 1), batch)
            loss = loss + self.alignment_weight * error / _count(counts, "alignment", batch)
            logs["alignment_loss"] = error / max(own["alignment"], 1)
        return loss, {name: value.detach() for name, value in {"loss": loss, **logs}.items()}


def _chosen(weights: Tensor | None, index: Tensor) -> Tensor | None:
    return None if weights is None else weights[index]


def _entropy(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Sum over targets of the cross entropy in float32, by their weights where they have some."""
    logits = logits.float()
    if weights is None:
        return F.cross_entropy(logits, labels, reduction="sum")
    return (F.cross_entropy(logits, labels, reduction="none") * weights).sum()


def loss_name(objective: str, trained: Iterable[str]) -> str:
    """What an objective's loss is called: visual_loss where it is the only one."""
    return "visual_loss" if len(list(trained)) == 1 else f"{objective}_loss"


def part_of(parameter: str) -> str:
    """The part of the objective's model that a parameter's name belongs to: "backbone", the blocks; "text", the
    vocabulary's embedding and head; "visual", inputs, outputs and times of pictures."""
    name = parameter.removeprefix("model.")
    if name.startswith("blocks."):
        return "backbone"
    return "text" if is_text_parameter(name) else "visual"


def _count(given: Mapping[str, float] | None, name: str, batch: Batch) -> float:
    """0 targets everywhere divide a sum that is 0 by 1."""
    count = batch.targets[name] if given is None else float(given[name])
    return count if count > 0 else 1.0
