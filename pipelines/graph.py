"""The stages that there are, in a topological order, and which of them a pipeline has: those that its config names, and
those that it pins.

An input is a role: a stage reads the artifact of the nearest stage before it that makes the role.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from omniloom.infra.errors import InputError
from omniloom.pipelines.extensions import with_extensions
from omniloom.stages.base import Stage

_TOKENIZER_READS = ("records", "tokenizer?", "scorer?")
BUILT_IN = (
    Stage("ingest", "omniloom.stages.ingest.stage", makes="records"),
    Stage("curate", "omniloom.stages.curate.stage", ("records",), "records"),
    Stage("train_scorer", "omniloom.stages.scorer.stage", ("records",), "scorer"),
    Stage("recaption", "omniloom.stages.recaption.stage", ("records", "scorer"), "records"),
    Stage("tokenizer_image", "omniloom.stages.tokenizer.stage", _TOKENIZER_READS, "tokenizer"),
    Stage("tokenizer_joint", "omniloom.stages.tokenizer.stage", _TOKENIZER_READS, "tokenizer"),
    Stage("tokenizer_kl", "omniloom.stages.tokenizer.stage", _TOKENIZER_READS, "tokenizer", "KLConfig"),
    Stage("quantizer_study", "omniloom.stages.studies.quantizers", ("records",)),
    Stage("latents", "omniloom.stages.latents.stage", ("records", "tokenizer")),
    Stage("pretokenize", "omniloom.stages.pretokenize.stage", ("records", "tokenizer?"), "tokens"),
    Stage("objective_study", "omniloom.stages.studies.objectives", ("records", "tokenizer", "tokens")),
    Stage("generation_study", "omniloom.stages.studies.generations", ("records", "tokenizer", "tokens")),
    Stage("train", "omniloom.stages.train.stage", ("tokens", "tokenizer?"), "model"),
    Stage("distill", "omniloom.stages.distill.stage", ("tokens", "tokenizer?", "model"), "model"),
    Stage(
        "evaluate",
        "omniloom.stages.evaluate.stage",
        ("records", "tokenizer?", "tokens", "model", "scorer?", "quantizer_study?", "objective_study?"),
        "evaluation",
    ),
)
KNOWN, UNUSABLE = with_extensions(BUILT_IN)
KNOWN_NAMES = tuple(stage.name for stage in KNOWN)


class Graph:
    """The stages of one pipeline, by their names: those of its config, and the `pinned` ones, whose artifacts are there
    and need nothing. `inputs` maps each stage's name to {role: the name of the stage that it is read from}. `unread`:
    by stage, optional roles that its config has no use for.

    InputError where a stage reads a role that no stage before it makes.
    """

    def __init__(
        self, names: Iterable[str], pinned: Iterable[str] = (), unread: Mapping[str, Collection[str]] | None = None
    ):
        configured, pins = set(names), set(pinned)
        for name in sorted(pins - set(KNOWN_NAMES)):
            raise InputError(no_stage(name), field=f"pins.{name}")
        if not configured:
            raise InputError(f"expected at least one stage; the stages are {', '.join(KNOWN_NAMES)}", field="stages")
        self.stages = tuple(stage for stage in KNOWN if stage.name in configured | pins)
        self.names = tuple(stage.name for stage in self.stages)
        self.inputs: dict[str, dict[str, str]] = {}
        for stage in self.stages:
            left = (unread or {}).get(stage.name, ())
            roles = [role for read in stage.reads if (role := read.removesuffix("?")) not in left]
            self.inputs[stage.name] = {r: maker for r in roles if (maker := self.nearest(r, before=stage.name))}
            if (missing := self.missing(stage)) and stage.name not in pins:
                raise _unmade(stage, missing)

    def nearest(self, role: str, before: str | None = None) -> str | None:
        """The last stage (before another one) that makes the role; None where there is none."""
        names = self.names[: self.names.index(before)] if before else self.names
        return next((s.name for s in reversed(self.stages) if s.makes == role and s.name in names), None)

    def descendants(self, name: str) -> set[str]:
        """The stages that need `name`, directly or through others."""
        needing: set[str] = {name}
        for stage in self.stages:
            if needing & set(self.inputs[stage.name].values()):
                needing.add(stage.name)
        return needing - {name}

    def ancestors(self, name: str) -> set[str]:
        """The stages that `name` needs, directly or through others."""
        return {stage.name for stage in self.stages if name in self.descendants(stage.name)}

    def upstream(self, name: str) -> dict[str, str]:
        """By role, the stage that makes what `name` reads or what that was made from: the nearest where several do."""
        before = self.ancestors(name)
        return {stage.makes: stage.name for stage in self.stages if stage.name in before}

    def missing(self, stage: Stage) -> list[str]:
        """The roles that a stage must read and that no stage before it makes; only a pinned one may lack any."""
        return [role for role in stage.reads if not role.endswith("?") and role not in self.inputs[stage.name]]


def no_stage(name: str) -> str:
    """The error for a name that no stage has."""
    why = UNUSABLE.get(name)
    return f"cannot be used: {why}" if why else f"no stage {name!r}; the stages are {', '.join(KNOWN_NAMES)}"


def _unmade(stage: Stage, roles: list[str]) -> InputError:
    before = KNOWN[: KNOWN_NAMES.index(stage.name)]
    makers = [[f"stages.{known.name}" for known in reversed(before) if known.makes == role] for role in roles]
    return InputError(
        f"reads {' and '.join(roles)}, which no configured stage before it makes; configure "
        f"{' and '.join(' or '.join(names) for names in makers)}, pin an artifact, or leave {stage.name} out "
        f"(stages.{stage.name}=null)",
        field=f"stages.{stage.name}",
    )
