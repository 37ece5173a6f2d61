"""The six stages, in order, and what each reads. The order is a topological one."""
from __future__ import annotations

from stages.base import Stage

STAGES = (
    Stage("ingest", "stages.ingest"),
    Stage("tokenizer_image", "stages.train_tokenizer", ("ingest",)),
    Stage("tokenizer_joint", "stages.train_tokenizer", ("ingest", "tokenizer_image")),
    Stage("pretokenize", "stages.pretokenize", ("ingest", "tokenizer_joint")),
    Stage("train", "stages.train_unified", ("pretokenize", "tokenizer_joint")),
    Stage("evaluate", "stages.evaluate", ("ingest", "tokenizer_joint", "pretokenize", "train")),
)
NAMES = tuple(stage.name for stage in STAGES)


def descendants(name: str) -> set[str]:
    """The stages that need `name`, directly or through others."""
    found: set[str] = set()
    for stage in STAGES:
        if name in stage.inputs or found & set(stage.inputs):
            found.add(stage.name)
    return found


def ancestors(name: str) -> set[str]:
    """The stages that `name` needs, directly or through others."""
    return {stage.name for stage in STAGES if name in descendants(stage.name)}
