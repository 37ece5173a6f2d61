"""Start from a trained model of ours. In: the weights of its folder, its config and the config of the model to train.
Out: a `UnifiedModel` with its weights, whose parts that it lacks are fresh.

Weights are read through a memory map, one tensor at a time, straight into place. `safetensors` is imported when a file
is opened.
"""

from __future__ import annotations

from pathlib import Path

import torch

from omniloom.models.unified.adapter.config import filled
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.llama.load import allocate, copy_towers
from omniloom.models.unified.model import UnifiedModel

WEIGHTS = "unified.safetensors"


def load_own(folder: str | Path, start: UnifiedConfig, config: UnifiedConfig) -> UnifiedModel:
    """The model of `config`, on the CPU, in training mode, with the weights of the model folder whose config is
    `start`. What that has for representations which `config` lacks is left out; what it lacks is drawn from torch's
    global generator, but for what pictures have of the blocks for themselves, which text's weights fill. ValueError
    naming the file and the tensor that is missing or of another shape."""
    from safetensors import SafetensorError, safe_open

    file = Path(folder) / WEIGHTS
    model = allocate(config, torch.float32)
    with torch.device("meta"):
        known = [name for name, _ in UnifiedModel(filled(config, start)).named_parameters()]
    try:
        with safe_open(file, framework="pt") as tensors, torch.no_grad():
            for name in known:
                target, found = model.get_parameter(name), tensors.get_tensor(name)
                if found.shape != target.shape:
                    raise ValueError(f"{name}: expected shape {tuple(target.shape)}, got {tuple(found.shape)}")
                target.copy_(found)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{file}: cannot load the weights: {error}") from error
    copy_towers(model, known)
    return model
