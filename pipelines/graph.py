"""The stages, in a topological order, and what each reads. A pipeline has those that its config names: by default
six; of text alone the four that need no visual tokenizer; optional ones where they are asked for.

An input written `a|b` is the first of them that the pipeline configures; one that ends in `?` may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from omniloom.stages.base import Stage

_TOKENIZER = "tokenizer_kl|tokenizer_joint|tokenizer_image?"
KNOWN = (
    Stage("ingest", "omniloom.stages.ingest.stage"),
    Stage("tokenizer_image", "omniloom.stages.tokenizer.stage", ("ingest",)),
    Stage("tokenizer_joint", "omniloom.stages.tokenizer.stage", ("ingest", "tokenizer_image")),
    Stage("tokenizer_kl", "omniloom.stages.tokenizer.stage", ("ingest", "tokenizer_joint"), optional=True),
    Stage("quantizer_study", "omniloom.stages.studies.quantizers", ("ingest",), optional=True),
    Stage("pretokenize", "omniloom.stages.pretokenize.stage", ("ingest", _TOKENIZER)),
    Stage(
        "objective_study",
        "omniloom.stages.studies.objectives",
        ("ingest", _TOKENIZER.removesuffix("?"), "pretokenize"),
        optional=True,
    ),
    Stage("train", "omniloom.stages.train.stage", ("pretokenize", _TOKENIZER)),
    Stage(
        "evaluate",
        "omniloom.stages.evaluate.stage",
        ("ingest", _TOKENIZER, "pretokenize", "train", "quantizer_study?", "objective_study?"),
    ),
)
_ROLES = {"ingest": "records", "pretokenize": "tokens", "train": "model"}
KNOWN_NAMES = tuple(stage.name for stage in KNOWN)
NAMES = tuple(stage.name for stage in KNOWN if not stage.optional)


class Graph:
    """The stages of one pipeline, by their names. ValueError where one of them needs a stage that is not there."""

    def __init__(self, names: Iterable[str] = NAMES):
        chosen = set(names)
        self.stages = tuple(replace(stage, inputs=_resolved(stage, chosen)) for stage in KNOWN if stage.name in chosen)
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

    def upstream(self, name: str) -> dict[str, str]:
        """By role, the stage that makes what `name` reads or what that was made from: the nearest where several do."""
        before = self.ancestors(name)
        return {role(stage.name): stage.name for stage in self.stages if stage.name in before}


def role(name: str) -> str:
    """What other stages call the output of this one."""
    return "tokenizer" if name.startswith("tokenizer_") else _ROLES.get(name, name)


def _resolved(stage: Stage, chosen: set[str]) -> tuple[str, ...]:
    found = []
    for given in stage.inputs:
        names = given.rstrip("?").split("|")
        if name := next((name for name in names if name in chosen), None):
            found.append(name)
        elif not given.endswith("?"):
            raise ValueError(f"{stage.name}: reads {' or '.join(names)}, which the pipeline does not configure")
    return tuple(found)
