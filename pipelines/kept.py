"""Tokenizers that are kept as data grow: what a corpus has learnt by stays what it was while little of it is new.

A stage whose config has `retrain` (`stages.retrain`) and whose output differs from that of its last artifact in the
records alone keeps that artifact in a plan; a stage that makes tokens keeps the text tokenizer in its last one, as if
the config named its file as `text_tokenizer`. What is made from them is then addressed by what is kept, as by
anything else: fingerprints stay exact.

Growth counts from the corpus that was learnt from, over however many artifacts the current one was built on; while it
is not read yet, by the listing of its files.
"""

from __future__ import annotations

from typing import Protocol

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.pipelines import predecessors
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.fingerprint import canonical, differences
from omniloom.pipelines.graph import Graph
from omniloom.pipelines.outside import outside_contents
from omniloom.pipelines.planned import TEXT, Kept, PlannedStage
from omniloom.pipelines.selection import Selection
from omniloom.stages.ingest.increments import growth
from omniloom.stages.ingest.increments.growth import Growth
from omniloom.stages.retrain import allows


class Plan(Protocol):
    """What of a plan is looked at."""

    config: PipelineConfig
    store: ArtifactStore
    graph: Graph
    selection: Selection
    selected: set[str]
    done: set[str]
    contents: dict[str, dict]

    def __getitem__(self, name: str) -> PlannedStage: ...


def settle(planned: PlannedStage, plan: Plan) -> None:
    """Keep what the stage's config lets be kept, of one that has no artifact of just these records."""
    retrain = getattr(planned.config, "retrain", None)
    if not retrain or planned.artifact or getattr(planned.config, TEXT, None):
        return
    if planned.name not in plan.done and plan.selection.again(planned.name, plan.selected):
        return
    last = plan.store.last_used(plan.config.name, planned.name)
    earlier = last and plan.store.find(planned.name, last.fingerprint)
    if earlier is None or not _same_but_for_records(planned, earlier, plan):
        return
    found = _growth(planned, earlier, plan)
    if found is None:
        return
    planned.kept = Kept(earlier, found, retrain, allows(retrain, found.new, found.gone))
    if not planned.kept.stays:
        return
    if planned.stage.makes == "tokens":
        planned.config = planned.config.model_copy(update={TEXT: storage.join(earlier.uri, "text.json")})
        planned.outside = outside_contents(planned.config, plan.contents)
    else:
        planned.artifact, planned.fingerprint, planned.uri = earlier, earlier.fingerprint, earlier.uri


def _same_but_for_records(planned: PlannedStage, earlier: Artifact, plan: Plan) -> bool:
    old, free = earlier.manifest, {TEXT} if planned.stage.makes == "tokens" else set()
    if old["version"] != planned.stage.module.VERSION or plan.store.damage(earlier):
        return False
    others = [name for role, name in planned.inputs.items() if role != predecessors.RECORDS]
    now = {name: plan[name].artifact for name in others}
    # By which visual tokenizer tokens are made says nothing of the text tokenizer among them.
    if not free and any(a is None or a.digest != old["input_digests"].get(name) for name, a in now.items()):
        return False
    changed = differences(old["config"], canonical(planned.config, planned.name))
    was, is_now = ({f: facts["digest"] for f, facts in known.items()} for known in (old["outside"], planned.outside))
    return {path for path, _, _ in [*changed, *differences(was, is_now)]} <= free


def _growth(planned: PlannedStage, earlier: Artifact, plan: Plan) -> Growth | None:
    """Of the corpus that the earlier artifact learnt from; None where that is not known, or was made otherwise."""
    learnt_from = earlier.manifest.get("learnt_from") or earlier.manifest.get("made_of") or {}
    records = plan.graph.inputs[planned.name][predecessors.RECORDS]
    makers = [name for name in plan.graph.names if name == records or name in plan.graph.ancestors(records)]
    source, *between = [name for name in makers if plan[name].stage.makes == predecessors.RECORDS]
    for name in between:
        if (learnt_from.get(name) or {}).get("options") != options(plan[name]):
            return None
    if not (then := (learnt_from.get(source) or {}).get("fingerprint")):
        return None
    kinds = _kinds(planned)
    current = plan[source]
    if current.artifact and current.status == "cached":
        return growth.since(current.artifact, then, kinds)
    if current.grown and (before := growth.since(current.grown.earlier, then, kinds)):
        return growth.expected(before, current.grown.files)
    return None


def _kinds(planned: PlannedStage) -> tuple[str, ...]:
    """Of the records that the stage learns from; empty for all."""
    return tuple(getattr(getattr(planned.config, "data", None), "kinds", ()))


def options(planned: PlannedStage) -> list:
    """What of a stage between ingest and a tokenizer has to stay for the growth of the one to tell of the other."""
    return [planned.stage.module.VERSION, canonical(planned.config, planned.name)]


def made_of(planned: PlannedStage, inputs: dict[str, Artifact]) -> dict[str, dict]:
    """For a manifest: by stage what the artifact and all that it was made from are."""
    found: dict[str, dict] = {}
    for artifact in inputs.values():
        found |= artifact.manifest.get("made_of") or {}
    own = {"options": options(planned)} if planned.stage.makes == predecessors.RECORDS else {}
    return found | {planned.name: {"fingerprint": planned.fingerprint, **own}}


def learnt_from(planned: PlannedStage) -> dict:
    """For the manifest of tokens: of what the text tokenizer was trained on, where that is an earlier one's."""
    if not (planned.kept and planned.kept.stays):
        return {}
    old = planned.kept.earlier.manifest
    return {"learnt_from": old.get("learnt_from") or old.get("made_of") or {}}
