"""Collecting garbage: what of a storage nothing reaches any more. In: a place. Out: what would go, or went, with its
bytes, and why what stays does.

An artifact stays where one of these uses it, or something that stays was made with it (`lineage.links`):
    a pipeline      the last run of each pipeline of the storage, by `pipelines/NAME/STAGE.json`
    a run           one that is under way
    a sweep         those of its trials, by `sweeps/PIPELINE/ID/sweep.json`
    a pin           of the config that names the place
    a model         a registered version, whatever its aliases
    unfinished work a stage that was interrupted goes on from its inputs
    its age         it came less than the grace time ago
What forced runs put aside (`replaced/`), and files of no artifact that a deletion left behind when it was interrupted,
go after the grace time. Unfinished work itself stays, and is listed.

Runs may work meanwhile: an artifact is deleted under the lease of those who would make it, and the runs that are under
way are looked at once more after its manifest is gone (`ArtifactStore.drop`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import MANIFEST, Artifact
from omniloom.infra.errors import InputError
from omniloom.infra.lease import Lease
from omniloom.infra.secrets import redact
from omniloom.infra.tracking.failures import short
from omniloom.pipelines import record
from omniloom.pipelines.catalog.lineage import Key, ancestors, registered
from omniloom.pipelines.catalog.listing import size, used_by
from omniloom.pipelines.catalog.places import Place
from omniloom.pipelines.sweeps import folder as sweeps
from omniloom.stages.train import ledger

GRACE_DAYS = 1.0
_DAY = 86400.0


def collect(where: Place, grace_days: float = GRACE_DAYS, delete: bool = False) -> dict[str, Any]:
    """{"storage", "garbage": [...], "bytes", "kept": [...], "unfinished": [...], "deleted_bytes"}. InputError where it
    is not known which models are registered."""
    now = time.time()
    known = {(found.stage, found.fingerprint): found for found in where.store.all()}
    roots = dict(_roots(where, known))
    for key, found in known.items():
        if now - where.store.placed_unix(found) < grace_days * _DAY:
            roots.setdefault(key, f"it is younger than {grace_days:g} days")
    reached = ancestors((known[key] for key in roots if key in known), known)
    garbage = sorted(known.keys() - reached, key=lambda key: -known[key].manifest["times"]["ended_unix"])
    # Before what they were made with: what is there at any moment has its inputs.
    rows = [_row("artifact", known[key], delete and _drop(where, known[key])) for key in garbage]
    rows += [
        _aside(found, uri, delete)
        for uri, found in _put_aside(where)
        if now - found.manifest["times"]["ended_unix"] >= grace_days * _DAY
    ]
    rows += [
        _left(where, stage, fingerprint, uri, files, delete)
        for stage, fingerprint, uri, files in _leftovers(where)
        if now - max(storage.modified_unix(storage.join(uri, name)) for name in files) >= grace_days * _DAY
    ]
    kept = [
        {"stage": key[0], "fingerprint": key[1], "why": roots.get(key, "something that stays was made with it")}
        for key in sorted(reached)
    ]
    return redact(
        {
            "storage": where.root,
            "garbage": rows,
            "bytes": sum(row["bytes"] for row in rows),
            "kept": kept,
            "unfinished": list(_unfinished(where)),
            "deleted_bytes": sum(row["bytes"] for row in rows if row["deleted"]),
        }
    )


def _row(kind: str, found: Artifact, deleted: bool) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "kind": kind,
        "stage": found.stage,
        "fingerprint": found.fingerprint,
        "uri": found.uri,
        "pipeline": manifest.get("pipeline"),
        "ended": manifest["times"]["ended"],
        "bytes": size(found),
        "deleted": deleted,
    }


# ---- what is reached ----


def _roots(where: Place, known: dict[Key, Artifact]) -> Iterator[tuple[Key, str]]:
    for key, pipelines in used_by(where.root).items():
        yield key, f"the pipeline {' and '.join(pipelines)} used it last"
    for key, run in _under_way(where):
        yield key, f"the run {run} uses it"
    for key, folder in sweeps.used(where.root):
        yield key, f"the sweep in {folder} compares it; without that folder it can go"
    for stage, fingerprint in where.pins().items():
        yield (stage, fingerprint), "it is pinned"
    for key, model in _models(where, known):
        yield key, f"it is the model {model}"
    for key, stage in _needed_by_work(where, known):
        yield key, f"unfinished work of {stage} goes on from it"


def _under_way(where: Place) -> Iterator[tuple[Key, str]]:
    for found in record.under_way(where.root):
        if "artifacts" not in found:
            raise InputError(
                f"the run {found['id']} is under way and does not say what it uses; wait for its end", field="PLACE"
            )
        for key in found["artifacts"].items():
            yield key, found["id"]


def _models(where: Place, known: dict[Key, Artifact]) -> Iterator[tuple[Key, str]]:
    by_fingerprint = {key[1]: key for key, found in known.items() if _tracked(found)}
    settings = where.settings
    if by_fingerprint and settings.database and not settings.database.exists():
        raise InputError(
            "its runs were tracked, and not in this storage: which models are registered is not known; name the "
            "pipeline's config in place of the storage, or set MLFLOW_TRACKING_URI",
            field="PLACE",
            file=where.root,
        )
    try:
        versions = registered(settings, list(by_fingerprint))
    except Exception as error:  # whatever the registry answers
        raise InputError(
            f"the model registry at {settings.shown} does not answer, so that nobody knows which models are "
            f"registered: {short(error)}",
            field="PLACE",
            file=where.root,
        ) from None
    for version in versions:
        aliases = "".join(f" @{alias}" for alias in version["aliases"])
        yield by_fingerprint[version["fingerprint"]], f"{version['name']} version {version['version']}{aliases}"


def _tracked(found: Artifact) -> bool:
    """Whether it can have been registered."""
    return bool(found.manifest.get("mlflow_run_id")) and any(
        entry["path"].startswith("model/") for entry in found.manifest["files"]
    )


def _needed_by_work(where: Place, known: dict[Key, Artifact]) -> Iterator[tuple[Key, str]]:
    by_digest = {(found.stage, found.digest): key for key, found in known.items()}
    for stage, fingerprint, work in _works(where):
        for name, digest in (storage.read_json(storage.join(work, "inputs.json")) or {}).items():
            if key := by_digest.get((name, digest)):
                yield key, stage
        begun = ledger.read(storage.join(work, "state"))
        for period in (begun or {}).get("periods", ()):
            yield (period["tokens"]["stage"], period["tokens"]["fingerprint"]), stage
            if period["training"] != fingerprint:
                yield (stage, period["training"]), stage


def _works(where: Place) -> Iterator[tuple[str, str, str]]:
    """(stage, fingerprint, folder) of all work that was begun."""
    root = storage.join(where.root, "work")
    for stage, fingerprint in sorted({tuple(name.split("/")[:2]) for name in storage.list_files(root)}):
        yield stage, fingerprint, storage.join(root, stage, fingerprint)


def _unfinished(where: Place) -> Iterator[dict[str, Any]]:
    for stage, fingerprint, work in _works(where):
        files = storage.list_files(work)
        yield {"stage": stage, "fingerprint": fingerprint, "uri": work, "bytes": sum(files.values())}


# ---- what goes ----


def _drop(where: Place, found: Artifact) -> bool:
    key = (found.stage, found.fingerprint)

    def in_use() -> bool:
        compared = any(key == used for used, _ in sweeps.used(where.root))
        return compared or key in used_by(where.root) or any(key == used for used, _ in _under_way(where))

    lease = storage.join(where.root, "leases", found.stage, f"{found.fingerprint}.json")
    with Lease(lease).at_once() as ours:  # else somebody makes it again at this moment
        return ours and not in_use() and where.store.drop(found, in_use)


def _leftovers(where: Place) -> Iterator[tuple[str, str, str, dict[str, int]]]:
    """(stage, fingerprint, folder, files) of folders of artifacts without a manifest that nobody is publishing."""
    root = storage.join(where.root, "artifacts")
    found: dict[tuple[str, str], dict[str, int]] = {}
    for name, bytes_ in storage.list_files(root).items():
        stage, _, rest = name.partition("/")
        fingerprint, _, path = rest.partition("/")
        found.setdefault((stage, fingerprint), {})[path] = bytes_
    for (stage, fingerprint), files in found.items():
        if MANIFEST not in files and not storage.list_files(where.store.work_uri(stage, fingerprint)):
            yield stage, fingerprint, storage.join(root, stage, fingerprint), files


def _left(where: Place, stage: str, fingerprint: str, uri: str, files: dict[str, int], delete: bool) -> dict[str, Any]:
    if delete:
        with Lease(storage.join(where.root, "leases", stage, f"{fingerprint}.json")).at_once() as ours:
            delete = ours and where.store.find(stage, fingerprint) is None
            if delete:
                storage.remove(uri)
    facts = {"stage": stage, "fingerprint": fingerprint, "uri": uri, "pipeline": None, "ended": None}
    return {"kind": "leftover", **facts, "bytes": sum(files.values()), "deleted": delete}


def _put_aside(where: Place) -> Iterator[tuple[str, Artifact]]:
    root = storage.join(where.root, "replaced")
    for name in storage.list_files(root):
        parts = name.split("/")
        if len(parts) == 3 and parts[2] == MANIFEST and (manifest := storage.read_json(storage.join(root, name))):
            uri = storage.join(root, *parts[:2])
            yield uri, Artifact(parts[0], manifest["fingerprint"], uri, manifest)


def _aside(found: Artifact, uri: str, delete: bool) -> dict[str, Any]:
    if delete:
        storage.remove(uri)
    return _row("replaced", found, delete)
