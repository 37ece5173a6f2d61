"""Places and names: storages by what a user calls them, and artifacts and runs in them. In: a text. Out: a `Place`, an
`Artifact`, or a run's record.

A place is a pipeline's config or preset, or a storage. In it are named:
    PLACE:STAGE     the artifact that the config's pipeline used last; of a storage, the newest of the stage
    PLACE:DIGITS    the artifact whose fingerprint begins so
    PLACE:RUN       a run, by its id
An artifact is its folder, too, or any file or folder in it; and of a registered model, models:/NAME@ALIAS, the training
that made it, in the storage that it was made in.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage
from omniloom.infra.artifacts import MANIFEST, Artifact, ArtifactStore
from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact_uris
from omniloom.infra.tracking.config import VARIABLE
from omniloom.pipelines.config import find, identity, raw
from omniloom.pipelines.graph import KNOWN_NAMES

if TYPE_CHECKING:
    from omniloom.infra.tracking import TrackingSettings

_DIGITS = re.compile(r"[0-9a-f]{4,64}")
_RUN = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


@dataclass(frozen=True)
class Place:
    """A storage, by its `root`; `config` and `pipeline`, its name, where it was named by a config."""

    root: str
    config: str | None = None
    pipeline: str | None = None

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.root)

    @cached_property
    def settings(self) -> TrackingSettings:
        """Where its models are registered: as the config says, or as storages have it by themselves."""
        from omniloom.infra.tracking import TrackingConfig, resolve_tracking

        written = (raw(self.config).get("tracking") or {}) if self.config else {}
        return resolve_tracking(TrackingConfig.model_validate(written), self.root)

    def pins(self) -> dict[str, str]:
        """Fingerprints by stage that the config pins."""
        return dict(raw(self.config).get("pins") or {}) if self.config else {}


def place(text: str) -> Place:
    """InputError where it is neither a config nor a storage in which something was made."""
    if not text.endswith((".yaml", ".yml")) and is_storage(root := storage.absolute(text)):
        return Place(root)
    try:
        find(text)
    except InputError as error:
        why = f"is no storage that something was made in, and {error.message}"
        raise InputError(why, field="PLACE", file=redact_uris(text)) from None
    name, root, _ = identity(text)
    return Place(root, text, name)


def is_storage(root: str) -> bool:
    return any(storage.exists(storage.join(root, part)) for part in ("artifacts", "runs"))


def artifact(text: str) -> Artifact:
    """The artifact of this name; InputError naming ARTIFACT where there is none, or several."""
    found = item(text)
    if isinstance(found, Artifact):
        return found
    raise InputError("is a run; expected an artifact", field="ARTIFACT", file=text)


def item(text: str) -> Artifact | dict[str, Any]:
    """An artifact, or the record of a run."""
    if text.startswith("models:/"):
        return _registered(text)
    if found := _by_folder(storage.absolute(text)):
        return found
    where, colon, name = text.rpartition(":")
    if not colon or not where:
        raise InputError(
            "names no artifact; expected its folder, PLACE:STAGE, PLACE:DIGITS or PLACE:RUN, where PLACE is a "
            "config, a preset or a storage (`omniloom list PLACE` shows what is there)",
            field="ARTIFACT",
            file=text,
        )
    return _in(place(where), name, text)


def _in(where: Place, name: str, text: str) -> Artifact | dict[str, Any]:
    if name in KNOWN_NAMES:
        return _of_stage(where, name, text)
    if _RUN.fullmatch(name):
        if record := storage.read_json(storage.join(where.root, "runs", f"{name}.json")):
            return record
        raise InputError(f"no run {name} in {where.root}", field="ARTIFACT", file=text)
    if not _DIGITS.fullmatch(name):
        raise InputError(
            f"expected a stage ({', '.join(KNOWN_NAMES)}), at least 4 digits of a fingerprint, or a run, got {name!r}",
            field="ARTIFACT",
            file=text,
        )
    found = [known for known in where.store.all() if known.fingerprint.startswith(name)]
    if len(found) != 1:
        says = f"no artifact {name} in {where.root}" if not found else f"several artifacts begin with {name}: "
        says += ", ".join(f"{known.stage} {known.fingerprint[:16]}" for known in found[:5])
        raise InputError(says, field="ARTIFACT", file=text)
    return found[0]


def _of_stage(where: Place, stage: str, text: str) -> Artifact:
    if where.pipeline:
        last = where.store.last_used(where.pipeline, stage)
        found = where.store.find(stage, last.fingerprint) if last else None
    else:
        found = max(where.store.all(stage), key=lambda known: known.manifest["times"]["ended_unix"], default=None)
    if found is None:
        raise InputError(f"{stage} has made nothing in {where.root} that is there", field="ARTIFACT", file=text)
    return found


def _by_folder(uri: str) -> Artifact | None:
    """The artifact that lies at the URI, or around it: STORAGE/artifacts/STAGE/FINGERPRINT/..."""
    parts = uri.split("/")
    for end in range(len(parts), 2, -1):
        if parts[end - 3] == "artifacts" and re.fullmatch(r"[0-9a-f]{64}", parts[end - 1]):
            folder = "/".join(parts[:end])
            if manifest := storage.read_json(storage.join(folder, MANIFEST)):
                return Artifact(parts[end - 2], parts[end - 1], folder, manifest)
            return None
    return None


def store_of(found: Artifact) -> ArtifactStore:
    """The storage that the artifact lies in."""
    return ArtifactStore(found.uri.rsplit("/", 3)[0])


def _registered(text: str) -> Artifact:
    """The training of a registered model, where its storage is still there."""
    from omniloom.infra.tracking.registry import origin

    require_registry(text)
    fingerprint, roots = origin(text)
    for root in roots if fingerprint else ():
        for stage in KNOWN_NAMES:
            if found := ArtifactStore(root).find(stage, fingerprint or ""):
                return found
    raise InputError(
        f"was made by the training {fingerprint or 'of an unknown fingerprint'}, which lies in no storage that the "
        "registry tells; name it by PLACE:DIGITS",
        field="ARTIFACT",
        file=text,
    )


def require_registry(model: str) -> None:
    """InputError where nobody has said which registry is meant."""
    if not os.environ.get(VARIABLE):
        raise InputError(
            f"the registry to ask is not known; set {VARIABLE}, which `omniloom ui CONFIG` prints, or "
            "name the pipeline's config in place of the model",
            field="MODEL",
            file=model,
        )
