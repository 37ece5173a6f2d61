"""A stage of a plan: what identifies its output, whether that is there, what is to be done and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omniloom.infra.artifacts import Artifact
from omniloom.stages.base import Stage
from omniloom.stages.ingest.increments.growth import FileChanges, Growth

TEXT = "text_tokenizer"  # the field of a stage that makes tokens


@dataclass(frozen=True)
class Grown:
    """What a stage's sources have become since the artifact that its next one will be built on."""

    earlier: Artifact
    files: FileChanges


@dataclass(frozen=True)
class Kept:
    """A tokenizer, or tokens with their text tokenizer, of an earlier state of the corpus: whether it `stays`, by its
    `retrain`."""

    earlier: Artifact
    growth: Growth
    retrain: str
    stays: bool

    @property
    def why(self) -> str:
        return f"{self.growth} (retrain: {self.retrain})"


@dataclass
class PlannedStage:
    stage: Stage
    config: Any  # None for one that is pinned and not configured
    inputs: dict[str, str]  # {role: the name of the stage that it is read from}
    fingerprint: str
    uri: str
    artifact: Artifact | None  # the published one, if it can be used
    sources: dict | None  # {"digest", "files", "bytes"} of the listing, for a stage that reads outside sources
    outside: dict[str, dict]  # field of a path in the config -> {"uri", "digest", "files", "bytes"} of what is there
    status: str = "run"
    reason: str = ""
    last_seconds: float | None = None
    known: Artifact | None = None  # what it made, now or the last time
    expected: Artifact | None = None  # what it comes out as, as far as nothing says that it will be another
    drift: bool = False  # pinned to an artifact that the config would not make
    listing: Sequence[Mapping] | None = None  # of the sources
    offered: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # files and bytes by the source's number
    grown: Grown | None = None
    kept: Kept | None = None

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def identity(self) -> str:
        """What stands for the stage's output in the fingerprints of what is made from it."""
        return self.artifact.identity if self.artifact else self.fingerprint

    @property
    def executes(self) -> bool:
        return self.status in ("run", "resume")

    def to_dict(self) -> dict:
        told: dict[str, Any] = {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "fingerprint": self.fingerprint,
            "artifact": self.uri,
            "last_seconds": self.last_seconds,
        }
        if self.grown:
            told["files"] = {name: getattr(self.grown.files, name) for name in ("added", "removed", "changed", "bytes")}
        if self.kept:
            told["growth"] = {"new": self.kept.growth.new, "gone": self.kept.growth.gone, "kept": self.kept.stays}
        return told
