"""The unified transformer: text by next token and pictures by any of five objectives, in one packed sequence.

Read in this order: `representations` (what pictures are made of and what is trained on them), `config`, `positions`,
`mask`, `batch` (what a row is made of), `attention`, `blocks`, `patchify`, `flow_head`, `mup` (weights and rates by
width and depth), `model`, `sequence` (ranks that share rows out); then the folders: `diffusion` (formulations and
samplers), `density` (heads of next_latent), `objectives` (what a training step computes), `generation` (`generate`,
`draw`), `llama` (how to start from a language model), `adapter` (low-rank adapters on frozen weights). Names are loaded
on first use, so that importing the configs does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "UnifiedConfig": "config",
    "DiffusionConfig": "diffusion.config",
    "SpecialIds": "config",
    "num_parameters": "parameters",
    "Segment": "batch",
    "Batch": "batch",
    "collate": "batch",
    "UnifiedModel": "model",
    "load_llama": "llama.load",
    "UnifiedObjective": "objectives.objective",
    "TextSampling": "generation.sampling",
    "VisualSampling": "generation.sampling",
    "generate_text": "generation.generate",
    "generate_visual": "generation.generate",
    "generate_interleaved": "generation.generate",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
