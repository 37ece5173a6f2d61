"""Reasons: what differs between a planned stage and the artifact that its pipeline used last, in words.

In: the planned stage, that artifact, the stages that it reads from. Out: one line, such as
`config: optimizer.lr 0.002 -> 0.0003; input changed: pretokenize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniloom.infra.artifacts import Artifact
from omniloom.pipelines.fingerprint import BY_CONTENT, canonical, differences
from omniloom.pipelines.outside import changed_files
from omniloom.pipelines.planned import TEXT, PlannedStage


def change(planned: PlannedStage, previous: Artifact | None, inputs: Mapping[str, PlannedStage]) -> str:
    """Differences from the artifact that the pipeline used last."""
    if previous is None:
        return "never ran"
    old = previous.manifest
    reasons = []
    if changes := config_changes(planned, previous):
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        reasons.append("config: " + ", ".join(changes[:3]) + more)
    now = getattr(planned.config, "enters_fingerprint", {})
    reasons += [f"{name}: {value}" for name, value in now.items() if old.get(name) != value]
    others = [
        name for name in inputs if old["inputs"].get(name) not in (inputs[name].fingerprint, inputs[name].identity)
    ]
    if changed := [
        name
        for name in others
        if (artifact := inputs[name].artifact) is None or artifact.digest != old["input_digests"].get(name)
    ]:
        reasons.append("input changed: " + ", ".join(changed))
    if planned.grown and planned.grown.files:
        reasons.append(str(planned.grown.files))
    elif planned.sources and (old.get("sources") or {}).get("digest") != planned.sources["digest"]:
        before, now = (
            f"{facts['files']} files, {facts['bytes']} bytes"
            for facts in (old.get("sources") or {"files": 0, "bytes": 0}, planned.sources)
        )
        reasons.append(f"sources changed: {before} -> " + (now if now != before else "as many, not the same"))
    outside = {field: facts for field, facts in planned.outside.items() if field != TEXT or not planned.kept}
    reasons += changed_files(old, outside, planned.name)
    if old["version"] != planned.stage.module.VERSION:
        reasons.append(f"version {old['version']} -> {planned.stage.module.VERSION}")
    if not reasons and others:  # they hold the same, which nobody noted down
        reasons.append("input changed: " + ", ".join(others))
    return "; ".join(reasons) or "its artifact is gone"


def config_changes(planned: PlannedStage, previous: Artifact) -> list[str]:
    """In words, the fields that the previous artifact's config had otherwise."""
    return [f"{path} {before} -> {now}" for path, before, now in changed_fields(planned, previous)]


def changed_fields(planned: PlannedStage, previous: Artifact) -> list[tuple[str, str, str]]:
    """The fields that the previous artifact's config had otherwise, with what they were and are."""
    old = previous.manifest
    return [
        (path, _show(path, a, old.get("outside")), _show(path, b, planned.outside))
        for path, a, b in differences(old["config"], canonical(planned.config, planned.name))
        if not (isinstance(a, str) and b == BY_CONTENT)  # made before paths were known by what they hold
        and not (path == TEXT and (planned.kept or old.get("learnt_from")))  # which no config names
    ]


def _show(field: str, value: Any, outside: dict[str, dict] | None) -> str:
    if value == BY_CONTENT and outside and field in outside:
        return outside[field]["uri"]
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
