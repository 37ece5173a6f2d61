"""Copies: artifacts, with what they were made with if asked for, into another storage. In: a name, a place. Out: what
was copied. A plan there finds them by their fingerprints."""

from __future__ import annotations

from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.infra.copying import copy_artifact
from omniloom.infra.errors import InputError
from omniloom.infra.secrets import redact
from omniloom.pipelines.catalog.lineage import ancestors
from omniloom.pipelines.catalog.listing import size
from omniloom.pipelines.catalog.places import place, store_of


def copy(artifact: Artifact, to: str, with_ancestors: bool = False) -> list[dict[str, Any]]:
    """`to`: a storage, there already or not, or the config of a pipeline whose storage is meant. What the artifact was
    made with comes before it, so that at no moment something is there whose inputs are still to come."""
    root = place(to).root if to.endswith((".yaml", ".yml")) else storage.absolute(to)
    source = store_of(artifact)
    if storage.absolute(root) == storage.absolute(source.root):
        raise InputError("the artifact lies there already", field="STORAGE", file=to)
    known = {(found.stage, found.fingerprint): found for found in source.all()}
    chosen = [artifact]
    if with_ancestors:
        keys = ancestors([artifact], known)
        chosen = sorted((known[key] for key in keys if key in known), key=lambda a: a.manifest["times"]["ended_unix"])
    target = ArtifactStore(root)
    rows = []
    for found in chosen:
        copied = copy_artifact(found, target)
        rows.append(
            {
                "stage": found.stage,
                "fingerprint": found.fingerprint,
                "artifact": target.artifact_uri(found.stage, found.fingerprint),
                "bytes": size(found),
                "copied": copied,
            }
        )
    return redact(rows)
