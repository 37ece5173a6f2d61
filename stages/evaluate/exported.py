"""Measures whether the exported model is the one that training validated: its validation losses again, of the same rows
under the same noise, against those that training wrote down last.

In: an `Evaluation`, which gets `export_gap`. Weights that were not averaged, a tensor that was not written, or latents
of another scale give other losses than the training had.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch

from omniloom.infra import storage
from omniloom.models.unified.objectives.objective import UnifiedObjective, loss_name
from omniloom.stages.checkpoints import start
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.evaluate.evaluation import Evaluation
from omniloom.stages.train.config import kept_config
from omniloom.stages.train.rows import validation_rows
from omniloom.stages.train.trainer import mean_losses


class _Plain:
    """What `mean_losses` asks of an engine, of a model by itself."""

    def __init__(self, device: torch.device, precision: str):
        self.device, self.collective = device, False
        self._dtype = torch.bfloat16 if precision == "bf16" else None

    def autocast(self) -> Any:
        return torch.autocast(self.device.type, self._dtype) if self._dtype else contextlib.nullcontext()


def export_gap(evaluation: Evaluation) -> None:
    """Nothing where the training was gone on from another one, which leaves out rows, or did not write down its losses
    and of how many rows they are, which its config, as the manifest keeps it, does not say."""
    model = evaluation.inputs.get("model")
    if model is None or len((storage.read_json(model.file("ledger.json")) or {}).get("periods", ())) > 1:
        return
    known = {name: value for name, value in model.metrics.items() if name.startswith("validation_")}
    if not (count := known.pop("validation_rows", None)) or not evaluation.training:
        return
    config, loom = kept_config(evaluation.training, validation_rows=count), evaluation.loom
    held_out = TokenSet(evaluation.inputs["tokens"], "validation")
    held_out.facts |= start.latent_statistics(config.init_from, loom.model.config)
    rows = validation_rows(held_out, config, loom.model.config, loom.device.type)
    objective = UnifiedObjective(
        loom.model,
        config.diffusion,
        **config.loss.model_dump(exclude={"task_weights"}),
        pixel_diffusion=config.pixel_diffusion,
        objectives=config.trained,
    )
    names = {"text": "text_loss", **{name: loss_name(name, config.trained) for name in config.trained}}
    found = mean_losses(objective, rows, _Plain(loom.device, config.engine.precision), names)
    gaps = [abs(found[name] - value) / abs(value) for name, value in known.items() if name in found and value]
    if gaps:
        evaluation.metrics["export_gap"] = max(gaps) if all(map(math.isfinite, gaps)) else math.nan
