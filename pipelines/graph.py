"""The stages, in a topological order, and what each reads: six that every pipeline has, and those it may add.

An input written `a|b` is the first of them that the pipeline configures; `a?` is read where it is configured.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from stages.base import Stage

KNOWN = (
    Stage("ingest", "stages.ingest"),
    Stage("tokenizer_image", "stages.train_tokenizer", ("ingest",)),
    Stage("tokenizer_joint", "stages.train_tokenizer", ("ingest", "tokenizer_image")),
    Stage("tokenizer_kl", "stages.train_tokenizer", ("ingest", "tokenizer_joint"), optional=True),
    Stage("quantizer_study", "stages.quantizer_study", ("ingest",), optional=True),
    Stage("pretokenize", "stages.pretokenize", ("ingest", "tokenizer_kl|tokenizer_joint")),
    Stage("objective_study", "stages.objective_study", ("ingest", "tokenizer_kl|tokenizer_joint", "pretokenize"),
          optional=True),
    Stage("train", "stages.train_unified", ("pretokenize", "tokenizer_kl|tokenizer_joint")),
    Stage("evaluate", "stages.evaluate",
          ("ingest", "tokenizer_kl|tokenizer_joint", "pretokenize", "train", "quantizer_study?",
           "objective_study?")),
)
KNOWN_NAMES = tuple(stage.name for stage in KNOWN)
NAMES = tuple(stage.name for stage in KNOWN if not stage.optional)


class Graph:
    """The stages of one pipeline: the six, and the optional ones that it configures."""

    def __init__(self, optional: Iterable[str] = ()):
        chosen = set(NAMES) | set(optional)
        self.stages = tuple(replace(stage, inputs=_resolved(stage.inputs, chosen)) for stage in KNOWN
                            if stage.name in chosen)
        self.names = tuple(stage.name for stage in self.stages)

    def descendants(self, name: str) -> set[str]:
        """The stages that need `name`, directly or through others."""
        found: set[str] = set()
        for stage in self.stages:
            if name in stage.inputs or found & set(stage.inputs):
                found.add(stage.name)
        return found

    def ancestors(self, name: str) -> set[str]:
        """The stages that `name` needs, directly or through others."""
        return {stage.name for stage in self.stages if name in self.descendants(stage.name)}


def _resolved(inputs: tuple[str, ...], chosen: set[str]) -> tuple[str, ...]:
    found = (next((name for name in given.rstrip("?").split("|") if name in chosen), None) for given in inputs)
    return tuple(name for name in found if name)
