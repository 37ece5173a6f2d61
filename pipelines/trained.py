"""A trained model, by what a user calls it. In: a folder or URI, a pipeline's config or preset, a model of the
registry. Out: the folder to load it from.
"""

from __future__ import annotations

import re

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.infra.errors import InputError
from omniloom.pipelines.config import find, identity
from omniloom.pipelines.graph import KNOWN

REGISTRY = "models:/"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def find_model(model: str) -> str:
    """The URI of a train artifact or of a model folder. InputError naming MODEL where there is none."""
    if model.startswith(REGISTRY):
        return _registered(model)
    if storage.exists(storage.absolute(model)) and not model.endswith((".yaml", ".yml")):
        return model
    try:
        find(model)
    except InputError:
        raise InputError(
            "no such model; expected a train artifact or its model folder, a pipeline's config or preset, "
            f"or {REGISTRY}NAME@ALIAS",
            field="MODEL",
            file=model,
        ) from None
    name, root, configured = identity(model)
    store = ArtifactStore(root)
    makers = [stage.name for stage in reversed(KNOWN) if stage.makes == "model"]
    for maker in sorted(makers, key=lambda maker: maker not in configured):
        artifact = store.last_used(name, maker)
        if artifact and storage.exists(artifact.file("manifest.json")):
            return _tuned(store, name, artifact) or artifact.uri
    raise InputError(
        f"has no trained model in {root} yet; run it first: omniloom run {model}", field="MODEL", file=model
    )


def _tuned(store: ArtifactStore, pipeline: str, trained: Artifact) -> str | None:
    """The pipeline's last evaluation, where it is of that model and has the model's folder with sampling of its own."""
    for stage in KNOWN:
        found = store.last_used(pipeline, stage.name) if stage.makes == "evaluation" else None
        if found and found.manifest["inputs"].get(trained.stage) == trained.fingerprint:
            if any(entry["path"] == "model/config.json" for entry in found.manifest["files"]):
                return found.uri
    return None


def training_of(artifact: Artifact) -> Artifact:
    """The training of the model in an artifact: itself, or what was evaluated where it is an evaluation."""
    makes = {stage.name: stage.makes for stage in KNOWN}
    if makes.get(artifact.stage) != "evaluation":
        return artifact
    store = ArtifactStore(artifact.uri.removesuffix(f"/artifacts/{artifact.stage}/{artifact.fingerprint}"))
    for stage, fingerprint in artifact.manifest["inputs"].items():
        if makes.get(stage) == "model" and (found := store.find(stage, fingerprint)):
            return found
    return artifact


def _registered(model: str) -> str:
    from omniloom.infra.tracking.registry import bundle_folder
    from omniloom.pipelines.catalog.places import require_registry

    require_registry(model)
    return str(bundle_folder(model))


def model_name(model: str) -> str:
    """What a server calls it: a pipeline's or registered model's name, an artifact's stage and fingerprint in short, a
    folder's name."""
    if model.startswith(REGISTRY):
        return model.removeprefix(REGISTRY).partition("@")[0].partition("/")[0]
    if not storage.exists(storage.absolute(model)) or model.endswith((".yaml", ".yml")):
        return identity(model)[0]
    *_, maker, name = ["", "", *storage.absolute(model).rstrip("/").removesuffix("/model").split("/")]
    return f"{maker}-{name[:12]}" if _FINGERPRINT.fullmatch(name) else name
