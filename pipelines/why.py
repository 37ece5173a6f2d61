"""Why a stage is cached or would run. In: a plan, a stage's name. Out: all that differs from what its pipeline used
last, and from the artifact of the stage that is nearest to what the config asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omniloom.infra.artifacts import Artifact
from omniloom.infra.secrets import redact
from omniloom.pipelines.fingerprint import canonical, differences
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.planned import PlannedStage
from omniloom.pipelines.reasons import change, config_changes


def why(plan: Plan, stage: str) -> dict[str, Any]:
    """InputError where the pipeline has no such stage."""
    planned = plan.stage(stage)
    last = plan.store.last_used(plan.config.name, stage)
    inputs = plan.inputs(planned)
    return redact(
        {
            **planned.to_dict(),
            "version": planned.stage.module.VERSION,
            "inputs": {
                name: {"status": read.status, "fingerprint": read.fingerprint, "same_as": _same_as(read)}
                for name, read in inputs.items()
            },
            "sources": planned.sources,
            "outside": planned.outside,
            "last_used": _compared(planned, last, plan) if last else None,
            "nearest": _nearest(planned, plan, last),
        }
    )


def _same_as(read: PlannedStage) -> str | None:
    return read.identity if read.identity != read.fingerprint else None


def _compared(planned: PlannedStage, known: Artifact, plan: Plan) -> dict[str, Any]:
    there = plan.store.find(known.stage, known.fingerprint) is not None
    configured = planned.config is not None
    return {
        "fingerprint": known.fingerprint,
        "ended": known.manifest["times"]["ended"],
        "there": there,
        "config": config_changes(planned, known) if configured else [],
        "differs": "" if known.fingerprint == planned.fingerprint else change(planned, known, plan.inputs(planned)),
    }


def _nearest(planned: PlannedStage, plan: Plan, last: Artifact | None) -> dict[str, Any] | None:
    """Of the stage's other artifacts, whichever pipeline made them, the one whose config and inputs differ least."""
    if planned.artifact or planned.config is None:
        return None
    others = [found for found in plan.store.all(planned.name) if not last or found.fingerprint != last.fingerprint]
    if not others:
        return None
    wanted = canonical(planned.config, planned.name)
    reads = {name: read.identity for name, read in plan.inputs(planned).items()}

    def distance(found: Artifact) -> tuple[int, float]:
        fields = len(differences(found.manifest["config"], wanted))
        inputs = sum(found.manifest["inputs"].get(name) != identity for name, identity in reads.items())
        return fields + inputs, -found.manifest["times"]["ended_unix"]

    return _compared(planned, min(others, key=distance), plan)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The answer in words."""
    yield f"{found['name']} {found['fingerprint'][:12]}: {found['status']}: {found['reason']}"
    for name, read in found["inputs"].items():
        yield f"  reads {name} {read['fingerprint'][:12]}, {read['status']}" + (
            f", the same as {read['same_as'][:12]}" if read["same_as"] else ""
        )
    for title, key in (("used last", "last_used"), ("nearest", "nearest")):
        if (known := found[key]) is None:
            continue
        here = "" if known["there"] else ", gone"
        yield f"{title}: {known['fingerprint'][:12]} of {known['ended']}{here}: {known['differs'] or 'this very one'}"
        yield from (f"  {change}" for change in known["config"])
    if found["last_used"] is None:
        yield "no run of this pipeline has made or used one"
