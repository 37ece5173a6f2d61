"""The loss of one training step of the unified model. In: a `Batch` and a seed. Out: the loss to differentiate and
detached figures to log. The whole step is one module with one forward pass, which is what DeepSpeed wraps.

loss = text_weight * mean over text targets of (cross entropy + z_loss * logsumexp^2)
     + sum over the objectives of weight * mean over the objective's targets of its error
       (`models.unified.objectives.losses`)
     + in training with an alignment, its weight * mean over those targets of the diffusions that have features of
       their distance from hidden states (`models.unified.objectives.alignment`)
The error of a target is multiplied by its segment's weight; the means still divide by the number of targets, so that a
weight of 2 counts a target twice and leaves the others as they are.

Shapes: B rows, L places of a row, D width, V vocabulary, T text targets; of one objective K positions and A
predictions of C channels, or of a logit a code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omniloom.models.extensions import resolve
from omniloom.models.unified.adapter.dropout import dropouts, seed_dropout
from omniloom.models.unified.batch import Batch, Document
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.diffusion.config import PIXEL_DIFFUSION, DiffusionConfig
from omniloom.models.unified.llama.load import is_text_parameter
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.alignment import FeatureAlignment, alignment_error
from omniloom.models.unified.objectives.corruption import Seed, draw_patch_masks, row_seeds
from omniloom.models.unified.objectives.entropy import entropy_sums
from omniloom.models.unified.objectives.losses import Shown, to_device
from omniloom.models.unified.representations import DENSITY, OBJECTIVES, objective_row
from omniloom.models.unified.sequence import RowShare, SequenceGroup


class UnifiedObjective(nn.Module):
    """Wraps a model with its losses.

    diffusion        of latents; pixel_diffusion: of pixels
    objectives       those that are trained, by name; the model has their representations and no others
    text_weight, visual_weight  of text's mean and of a diffusion's (Transfusion, arXiv 2408.11039, eq. 4: 1 and 5)
    objective_weights  by objective; one that is not named has text_weight where it is on codes, else visual_weight
    z_loss           weight of the squared log-partition, which keeps logits from drifting
                     (arXiv 2204.02311, section 5.1); of text
    alignment        projects hidden states onto a frozen encoder's features, or None; alignment_weight: of its loss;
                     alignment_layer: the number of blocks behind which the states are taken, a third of them by default
    sequence         ranks that share out the places of each row (`models.unified.sequence`), or None: each is given the
                     same whole batch and seed, and its loss and logs are the sums over the targets at its places
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
        sequence: SequenceGroup | None = None,
    ):
        super().__init__()
        own = {
            name: text_weight if objective_row(name).representation.discrete else visual_weight for name in objectives
        }
        self.weights = _with_weights(own, objective_weights or {})
        _check_not_negative(
            text_weight=text_weight,
            visual_weight=visual_weight,
            z_loss=z_loss,
            alignment_weight=alignment_weight,
            **self.weights,
        )
        _check_representations(model.config, objectives)
        self.model, self.text_weight, self.z_loss, self.sequence = model, text_weight, z_loss, sequence
        if sequence:
            _check_separable(objectives)
        self.dropouts = dropouts(model)
        self._entropy_sums = entropy_sums
        diffusions = {"latents": diffusion, "pixels": pixel_diffusion}
        self.losses: dict[str, Any] = {
            name: resolve(row.loss)(row, model.config, diffusions.get(row.representation.name))
            for name, row in OBJECTIVES.items()
            if name in self.weights
        }
        if alignment and not any(OBJECTIVES[name].is_diffusion for name in self.losses):
            raise ValueError("UnifiedObjective.alignment: expected None without a diffusion, whose targets it is of")
        self.alignment, self.alignment_weight = alignment, alignment_weight
        self.alignment_layer = _alignment_layer(alignment_layer, model.config.layers)

    def compile_parts(self) -> None:
        """Compile the blocks (`UnifiedModel.compile_blocks`) and the text loss, which eagerly reads and writes the
        logits, the largest tensor of a step, over and over. For training alone."""
        self.model.compile_blocks()
        self._entropy_sums = torch.compile(entropy_sums, dynamic=True)  # targets differ in number from batch to batch

    def draw_ahead(self, batch: Batch, seed: Seed) -> dict[str, tuple[Tensor, ...]]:
        """For `Batch.drawn`: what a training step would draw of the seed, so that the thread that loads batches draws
        it, on the host, and the step need not."""
        made = {name: loss.draw_ahead(batch, seed) for name, loss in self.losses.items() if hasattr(loss, "draw_ahead")}
        if self.model.config.patch_mask_high > 0:
            for name in self.losses:
                if OBJECTIVES[name].is_diffusion:
                    made[_patches(name)] = (self._draw_patches(batch, name, seed),)
        return made

    def show(self, batch: Batch, seed: Seed) -> dict[str, Shown]:
        """By objective, what the network is shown."""
        for name, task in batch.tasks.items():
            if len(task.targets) and name not in self.losses:
                raise ValueError(f"batch: holds targets of {name}; trained are {', '.join(self.losses) or 'none'}")
        shown = {name: loss.show(batch, seed) for name, loss in self.losses.items()}
        if self.training and self.model.config.patch_mask_high > 0:
            for name, own in shown.items():
                if OBJECTIVES[name].is_diffusion:
                    ahead = batch.drawn.get(_patches(name))
                    masked_K = ahead[0] if ahead else self._draw_patches(batch, name, seed)
                    own.masked = to_device(masked_K, batch.ids.device)
        return shown

    def _draw_patches(self, batch: Batch, name: str, seed: Seed) -> Tensor:
        """bool (K,)"""
        config, stream = self.model.config, OBJECTIVES[name].mask_stream
        masked_K = draw_patch_masks(config.patch_mask_low, config.patch_mask_high, batch, name, seed, stream)
        return torch.from_numpy(masked_K)

    def beside(self, rows: Sequence[Sequence[Document]], device: str | None) -> Batch | None:
        """For `Batch.unconditioned`: what the objective needs of packed rows beside their batch, for a device as in
        `collate`; None, as here, where that is nothing."""
        return None

    def predict(
        self,
        batch: Batch,
        shown: Mapping[str, Shown],
        layer_states: dict[int, Tensor] | None = None,
        share: RowShare | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`predict` by the own model."""
        return predict(self.model, batch, shown, layer_states, share)

    def forward(
        self, batch: Batch, seed: Seed, counts: Mapping[str, float] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, float32 scalar, and logs: loss, text_loss, z_loss where it is used, the error of each objective as
        {objective}_loss, or as visual_loss where there is only one, and alignment_loss: their sums over this batch's
        own targets, by its number of targets. Of several ranks that share rows out each has a share of these.

        counts  the targets to normalise by, as in `Batch.targets`; this batch's own by default. For means over
                all of R ranks and A accumulation steps, where the engine averages gradients over both, pass the total
                of each divided by R * A. What has no targets adds exactly 0.
        """
        shown = self.show(batch, seed)
        share = RowShare(self.sequence, *batch.ids.shape) if self.sequence else None
        if share:
            batch, shown = share.of(batch), {name: own.shared_out(share) for name, own in shown.items()}
        alignment = self.alignment if self.training else None
        layer_states = {self.alignment_layer: torch.empty(0)} if alignment else {}
        if self.training and self.dropouts:
            places = (share.first, share.length) if share else (0, 0)
            seed_dropout(self.dropouts, row_seeds(seed, len(batch.ids)), *places)
        logits_TV, predictions = self.predict(batch, shown, layer_states, share)
        labels_T = batch.labels.flatten()[batch.label_index]
        text, entropy, squares = self._entropy_sums(logits_TV, labels_T, batch.label_weights, self.z_loss)
        terms = [("text_loss", "text", self.text_weight, text)]
        for name, loss in self.losses.items():
            values = predictions[name] if OBJECTIVES[name].representation.discrete else predictions[name].float()
            error = loss.error(values, shown[name], batch)
            terms.append((loss_name(name, self.losses), name, self.weights[name], error))
        if alignment:
            error = alignment_error(alignment, layer_states[self.alignment_layer].flatten(0, 1), batch, share)
            terms.append(("alignment_loss", "alignment", self.alignment_weight, error))
        loss, logs = 0.0, {}
        for log, count, weight, error in terms:
            loss = loss + weight * error / _count(counts, count, batch)
            logs[log] = error.detach() / max(batch.targets[count], 1)
        logs["text_loss"] = entropy / max(batch.targets["text"], 1)
        if self.z_loss:
            logs["z_loss"] = squares / max(batch.targets["text"], 1)
        return loss, {"loss": loss.detach(), **logs}


def predict(
    model: UnifiedModel,
    batch: Batch,
    shown: Mapping[str, Shown],
    layer_states: dict[int, Tensor] | None = None,
    share: RowShare | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The network's text logits (T, V), and by objective its predictions (A, C). layer_states and share
    as in `UnifiedModel.forward`."""
    values = {name: part.values for name, part in batch.parts.items()}
    times: dict[str, Tensor] = {}
    steps: dict[str, Tensor] = {}
    masked: dict[str, Tensor] = {}
    by_density = any(OBJECTIVES[name].by_density for name in shown)
    places: dict[str, list[Tensor]] = {name: [] for name in (*batch.parts, *(DENSITY,) * by_density)}
    asked: dict[str, Tensor] | None = None
    for name, own in shown.items():
        kind, rows_K = OBJECTIVES[name].representation.name, batch.tasks[name].rows
        values[kind] = values[kind].index_copy(0, rows_K, own.values)
        places[OBJECTIVES[name].head].append(own.places)
        asked = asked if own.asked is None else own.asked
        if own.times is not None and kind in times:
            is_own = batch.tasks[name].caps.view_as(own.times) > 0
            times[kind] = torch.where(is_own, own.times, times[kind])
        elif own.times is not None:
            times[kind] = own.times
        if own.steps is not None:
            steps[kind] = own.steps
        if own.masked is not None:
            none_M = torch.zeros_like(batch.parts[kind].index, dtype=torch.bool)
            masked[kind] = none_M.index_copy(0, rows_K, own.masked)
    none = batch.label_index[:0]  # of an output that no objective asks
    joined = {head: torch.cat(several or [none]) for head, several in places.items()}
    logits_TV, outputs = model(batch, values, times, joined, masked, layer_states, share, asked, steps)
    pieces = {head: iter(outputs[head].split([len(p) for p in several])) for head, several in places.items()}
    predictions = {name: next(pieces[OBJECTIVES[name].head]) for name in shown}
    for head in (head for head, several in places.items() if not several):
        name = next(iter(predictions))  # so that what nothing asks takes part: the sum of nothing, with a gradient
        predictions[name] = predictions[name] + outputs[head].sum()
    return logits_TV, predictions


def _with_weights(own: dict[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """The weights of the objectives, `others` in place of their `own`. ValueError for an objective that has none."""
    if unknown := set(others) - set(own):
        raise ValueError(f"UnifiedObjective.objective_weights: {', '.join(sorted(unknown))} is not trained")
    return {**own, **others}


def _check_not_negative(**numbers: float) -> None:
    for name, value in numbers.items():
        if value < 0:
            raise ValueError(f"UnifiedObjective.{name}: expected a number not below 0, got {value!r}")


def _check_separable(objectives: Sequence[str]) -> None:
    """ValueError for objectives whose predictions cannot be shared out."""
    if whole := [name for name in objectives if not OBJECTIVES[name].separable]:
        raise ValueError(f"UnifiedObjective.sequence: {', '.join(whole)} is not separable")


def _check_representations(config: UnifiedConfig, objectives: Sequence[str]) -> None:
    """ValueError where the model has other representations than the objectives are on."""
    needed = {OBJECTIVES[name].representation.name for name in objectives}
    if needed != set(config.representations):
        has, wants = (", ".join(sorted(names)) or "none" for names in (config.representations, needed))
        raise ValueError(f"UnifiedObjective.objectives: the model has {has}, the objectives are on {wants}")
    by_density = [name for name in objectives if OBJECTIVES[name].by_density]
    if len(by_density) != config.has_density:
        told = "a" if config.has_density else "no"
        raise ValueError(
            f"UnifiedObjective.objectives: the model has {told} density head, of the objectives "
            f"{', '.join(by_density) or 'none'} asks it; expected one of each, or none"
        )


def _alignment_layer(layer: int | None, layers: int) -> int:
    """The number of blocks behind which hidden states are taken: a third of them by default."""
    if layer is None:
        return max(1, layers // 3)
    if not 1 <= layer <= layers:
        raise ValueError(f"UnifiedObjective.alignment_layer: expected 1 to {layers}, got {layer}")
    return layer


def _patches(objective: str) -> str:
    """Of `Batch.drawn`: which positions enter as a learned token."""
    return f"{objective}/patches"


def loss_name(objective: str, trained: Iterable[str]) -> str:
    """The name of an objective's loss in logs: visual_loss where it is the only one."""
    return "visual_loss" if len(list(trained)) == 1 else f"{objective}_loss"


def part_of(parameter: str) -> str:
    """The part of the model that a parameter belongs to, by its name: "backbone", the blocks; "text", the vocabulary's
    embedding and head; "visual", inputs, outputs and times of pictures."""
    name = parameter.removeprefix("model.")
    if name.startswith("blocks."):
        return "backbone"
    return "text" if is_text_parameter(name) else "visual"


def _count(counts: Mapping[str, float] | None, name: str, batch: Batch) -> float:
    """The targets to divide by; where there are none at all the sum is 0, and 1 divides it."""
    count = batch.targets[name] if counts is None else float(counts[name])
    return count if count > 0 else 1.0
