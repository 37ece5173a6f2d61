"""What artifacts were made from. In: artifacts. Out: they and all before them, as far as the same storage has them.

A worker gets only what its stage reads; the corpus, the tokenizers before the last and the run before this one lie
beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omniloom.infra.artifacts import Artifact, ArtifactStore


def store_of(artifact: Artifact) -> ArtifactStore:
    """The store that the artifact lies in: ROOT/artifacts/STAGE/FINGERPRINT."""
    return ArtifactStore(artifact.uri.rsplit("/artifacts/", 1)[0])


def ancestors(artifacts: Iterable[Artifact]) -> list[Artifact]:
    """The artifacts and what they were made from, what was made first before the rest; what is gone is left out."""
    found: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        for stage, fingerprint in artifact.manifest.get("inputs", {}).items():
            if stage not in found and (earlier := store_of(artifact).find(stage, fingerprint)):
                visit(earlier)
        found.setdefault(artifact.stage, artifact)

    for artifact in artifacts:
        visit(artifact)
    return list(found.values())


def changes(now: Mapping[str, Any], before: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(path, before, now) of the leaves in which two configs differ; what one of them has not is None."""
    for key in dict.fromkeys([*now, *before]):
        new, old = now.get(key), before.get(key)
        if isinstance(new, Mapping) and isinstance(old, Mapping):
            yield from changes(new, old, f"{prefix}{key}.")
        elif new != old:
            yield f"{prefix}{key}", old, new
