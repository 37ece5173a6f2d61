"""OmniLoom: raw folders of images, videos and text to a trained, evaluated model that reads and writes both.

The public Python API, loaded on first use:

    OmniLoom        a trained model: `OmniLoom.load(folder)` draws, describes and writes
    TextSampling    how it writes; VisualSampling: how it draws
    load_official   an OmniTokenizer from a checkpoint of the published code
    init, plan, run, sample, lineage, diff, export
                    the commands of these names, with values in place of lines
    load            a trained model by a config, an artifact or models:/NAME@ALIAS

The folders `pipelines/`, `stages/`, `models/` and `infra/` of the tree are `omniloom.pipelines` and so on.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "OmniLoom": "omniloom.models.model",
    "TextSampling": "omniloom.models.unified.generation.sampling",
    "VisualSampling": "omniloom.models.unified.generation.sampling",
    "load_official": "omniloom.models.tokenizer",
    **dict.fromkeys(("init", "plan", "run", "load", "sample", "lineage", "diff", "export"), "omniloom.pipelines.api"),
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
