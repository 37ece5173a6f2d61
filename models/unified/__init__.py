"""The unified transformer: text by next token and visual latents by diffusion, in one packed sequence.

Read in this order: `config`, `positions`, `mask`, `batch` (what a row is made of), `model`, `formulations`,
`diffusion`, `objective` (what a training step computes), `generate`, `llama` (how to start from a language
model). Names are loaded on first use, so that importing the configs does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "UnifiedConfig": "config",
    "DiffusionConfig": "diffusion_config",
    "SpecialIds": "config",
    "num_parameters": "config",
    "Segment": "batch",
    "Batch": "batch",
    "collate": "batch",
    "UnifiedModel": "model",
    "load_llama": "llama",
    "UnifiedObjective": "objective",
    "generate_text": "generate",
    "generate_visual": "generate",
    "generate_interleaved": "generate",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
