"""An evaluation, by what a user calls it. In: a folder or URI, a model, a pipeline, a run or a model of the registry.
Out: the values by item of its figures.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.infra.errors import InputError
from omniloom.infra.tracking.config import VARIABLE
from omniloom.pipelines.config import find, identity
from omniloom.pipelines.graph import KNOWN
from omniloom.pipelines.trained import REGISTRY

if TYPE_CHECKING:
    from omniloom.stages.evaluate.items import Values

RUNS = "runs:/"
_EVALUATIONS = tuple(stage.name for stage in KNOWN if stage.makes == "evaluation")
_EXPECTED = (
    "expected an evaluation's artifact, that of the trained model or its folder, a run's record, a pipeline's config "
    f"or preset, {RUNS}ID of MLflow, or {REGISTRY}NAME@ALIAS"
)


def find_all(names: str) -> list[Mapping[str, Values]]:
    """Of one name, or of several with commas between; what is there by the whole name is one. InputError where one is
    none, or stands twice."""
    parts = [names] if "," not in names or storage.exists(storage.absolute(names)) else names.split(",")
    if "" in parts:
        raise InputError("expected names with single commas between", file=names)
    if twice := next((part for part in parts if parts.count(part) > 1), None):
        raise InputError("stands twice; each training counts once", file=twice)
    return [find_items(part) for part in parts]


def find_items(name: str) -> Mapping[str, Values]:
    """By measure. InputError naming what is wrong where there is no such evaluation."""
    from omniloom.stages.evaluate import items

    if name.startswith((REGISTRY, RUNS)):
        with tempfile.TemporaryDirectory() as folder:
            found = items.read(_downloaded(name, folder))
    else:
        found = items.read(_folder(name))
    if found is None:
        raise InputError("kept no values by item; evaluate the model again by this version", file=name)
    return found


def _folder(name: str) -> str:
    uri = storage.absolute(name)
    if name.endswith(".json") and storage.exists(uri):
        return _of_record(uri, name)
    if storage.exists(uri) and not name.endswith((".yaml", ".yml")):
        return _of_artifact(uri, name)
    try:
        find(name)
    except InputError:
        raise InputError(f"no such evaluation; {_EXPECTED}", file=name) from None
    pipeline, root, _ = identity(name)
    for stage in _EVALUATIONS:
        found = ArtifactStore(root).last_used(pipeline, stage)
        if found and storage.exists(found.file("manifest.json")):
            return found.uri
    raise InputError(f"has no evaluation in {root} yet; run it first: omniloom run {name}", file=name)


def _of_record(uri: str, name: str) -> str:
    """The evaluation of a run, by STORAGE/runs/ID.json."""
    stages = storage.load_json(uri).get("stages", {})
    for stage in _EVALUATIONS:
        if fingerprint := stages.get(stage, {}).get("fingerprint"):
            root = uri.rpartition("/")[0].rpartition("/")[0]
            return ArtifactStore(root).artifact_uri(stage, fingerprint)
    raise InputError("is of a run without an evaluation", file=name)


def _of_artifact(uri: str, name: str) -> str:
    """The folder of an evaluation itself, or the newest evaluation of the model that is in the folder."""
    folder = uri.rstrip("/")
    for candidate in (folder, folder.removesuffix("/model")):
        manifest = storage.read_json(storage.join(candidate, "manifest.json"))
        if manifest is None:
            continue
        stage, fingerprint = candidate.split("/")[-2:]
        if stage in _EVALUATIONS:
            return candidate
        root = candidate.removesuffix(f"/artifacts/{stage}/{fingerprint}")
        measured = [found for found in _evaluations(ArtifactStore(root)) if _is_of(found, stage, fingerprint)]
        if measured:
            return max(measured, key=lambda found: found.manifest["times"]["ended_unix"]).uri
        raise InputError(f"no evaluation of it in {root}", file=name)
    from omniloom.stages.evaluate.items import FILE

    if storage.exists(storage.join(folder, FILE)):  # of a study's model, or copied out of an artifact
        return folder
    raise InputError(f"is no evaluation; {_EXPECTED}", file=name)


def _evaluations(store: ArtifactStore) -> Iterator[Artifact]:
    for stage in _EVALUATIONS:
        yield from store.all(stage)


def _is_of(evaluation: Artifact, stage: str, fingerprint: str) -> bool:
    return evaluation.manifest["inputs"].get(stage) == fingerprint


def _downloaded(name: str, target: str) -> str:
    """The folder of an MLflow run that has the items, or of the run that measured a model of the registry last."""
    from omniloom.infra.tracking.registry import downloaded, measured_by
    from omniloom.stages.evaluate.stage import EVALUATION

    if not os.environ.get(VARIABLE):
        raise InputError(f"the store to ask is not known; set {VARIABLE}, which `omniloom ui CONFIG` prints", file=name)
    run = measured_by(name) if name.startswith(REGISTRY) else name.removeprefix(RUNS)
    if run is None:
        raise InputError("was registered without a run that measured it; evaluate it again by this version", file=name)
    return str(downloaded(f"{RUNS}{run}/{EVALUATION}", target, name))
