"""Comparison: how two artifacts, runs or pipelines differ. In: two of one sort, by name. Out: a dictionary with, for
each stage, what differs of config, inputs, sources, outside files, code, packages and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact
from omniloom.pipelines.catalog import places
from omniloom.pipelines.fingerprint import ABSENT, differences
from omniloom.pipelines.graph import KNOWN_NAMES

_FACTS = ("version", "inputs", "sources", "outside", "code", "packages")


def diff(a: str, b: str) -> dict[str, Any]:
    """`a`, `b`: each an artifact, a run, or a pipeline's config, which stands for what it used last. InputError where
    one is an artifact of another stage, or is none of these."""
    one, other = _made(a), _made(b)
    both = [name for name in KNOWN_NAMES if name in one and name in other]
    if not both:
        raise InputError(f"made {_list(one)}, and {b} made {_list(other)}: nothing to compare", field="A", file=a)
    stages = [_stage(one[name], other[name]) for name in both]
    alone = {"a": [name for name in one if name not in other], "b": [name for name in other if name not in one]}
    return redact({"a": a, "b": b, "stages": stages, "only_in": alone, "same": all(row["same"] for row in stages)})


def _list(made: Mapping[str, Artifact]) -> str:
    return " and ".join(made) or "nothing that is there"


def _made(name: str) -> dict[str, Artifact]:
    """Artifacts by stage."""
    try:
        found = places.item(name)
    except InputError as error:
        try:
            where = places.place(name)
        except InputError:
            raise error from None
        return _last(where, name)
    if isinstance(found, Artifact):
        return {found.stage: found}
    store = places.place(name.rpartition(":")[0]).store
    made = found.get("artifacts") or {
        stage: facts["fingerprint"] for stage, facts in found["stages"].items() if "fingerprint" in facts
    }
    return _found(store, made)


def _last(where: places.Place, name: str) -> dict[str, Artifact]:
    if where.pipeline is None:
        raise InputError("is a storage; name a config, an artifact or a run", field="A", file=name)
    last = {stage: where.store.last_used(where.pipeline, stage) for stage in KNOWN_NAMES}
    return _found(where.store, {stage: known.fingerprint for stage, known in last.items() if known})


def _found(store: ArtifactStore, made: Mapping[str, str]) -> dict[str, Artifact]:
    found = {stage: store.find(stage, made[stage]) for stage in KNOWN_NAMES if stage in made}
    return {stage: artifact for stage, artifact in found.items() if artifact}


def _stage(one: Artifact, other: Artifact) -> dict[str, Any]:
    old, new = one.manifest, other.manifest
    return {
        "stage": one.stage,
        "a": one.fingerprint,
        "b": other.fingerprint,
        "same": one.digest == other.digest,
        "config": _changes(old["config"], new["config"]),
        **{name: _changes(old.get(name) or {}, new.get(name) or {}, name == "version") for name in _FACTS},
        "metrics": _figures(one.metrics, other.metrics),
    }


def _changes(old: Any, new: Any, whole: bool = False) -> list[dict[str, Any]]:
    """{"field", "a", "b"} of what differs; None where one has none."""
    rows = [("", old, new)] if whole and old != new else [] if whole else differences(old, new)
    return [{"field": path, "a": _plain(a), "b": _plain(b)} for path, a, b in rows]


def _plain(value: Any) -> Any:
    return None if value is ABSENT else value


def _figures(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the figures that differ: both, and how much the second is more."""
    rows = []
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name), new.get(name)
        if a != b:
            numbers = all(isinstance(value, int | float) for value in (a, b))
            rows.append({"field": name, "a": a, "b": b, "more": b - a if numbers else None})  # type: ignore[operator]
    return rows
