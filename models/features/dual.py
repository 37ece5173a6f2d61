"""Dual encoders from folders as `transformers` saves them: pictures and texts in one space.

A CLIPModel, the pictures' tower of a CLIPVisionModelWithProjection, or a SiglipModel, equal to `transformers`' model of
the folder but for rounding. Errors: ValueError naming the file and the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch

from omniloom.models.features.clip import Clip
from omniloom.models.features.clip_config import ClipConfig, clip_config
from omniloom.models.features.layouts import dual_tensors
from omniloom.models.features.siglip import Siglip
from omniloom.models.hf.config_json import read_json
from omniloom.models.hf.weights import open_checkpoint

Dual: TypeAlias = Clip | Siglip


def of_config(config: ClipConfig) -> Dual:
    """A model of the shape, its weights not yet drawn."""
    return Siglip(config) if config.family == "siglip" else Clip(config)


def load_dual(folder: str | Path) -> tuple[Dual, dict[str, float]]:
    """The model of a local folder in float32, frozen, in eval mode on the CPU, and of `logit_scale`, a logarithm, and
    `logit_bias` what the folder has. Files in fp32, bf16 and fp16 are read."""
    folder = Path(folder)
    where = folder / "config.json"
    model = of_config(clip_config(read_json(where), str(where))).eval()
    logits: dict[str, float] = {}
    with open_checkpoint(folder) as checkpoint:
        state = {key: checkpoint.read(key, shapes[0]).float() for key, shapes in dual_tensors(model.config).items()}
        for key, shape in _logit_shapes(model.config).items():
            if key in checkpoint:
                logits[key] = float(checkpoint.read(key, shape))
    model.load_state_dict(state)
    return model.requires_grad_(False), logits


def logit_tensors(config: ClipConfig, logits: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """As a folder of the family has them."""
    shapes = _logit_shapes(config)
    return {key: torch.full(shapes[key], value) for key, value in logits.items()}


def _logit_shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    return {"logit_scale": (1,) if config.family == "siglip" else (), "logit_bias": (1,)}
