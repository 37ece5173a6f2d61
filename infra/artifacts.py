"""Artifacts: immutable folders addressed by what made them, and the work folders that they are made in.

    STORAGE/artifacts/STAGE/FINGERPRINT/   manifest.json and the files it names; published, read-only
    STORAGE/work/STAGE/FINGERPRINT/        output/ (becomes the artifact) and state/ (shards done, checkpoints)
    STORAGE/replaced/STAGE/...             what a forced run put aside
    STORAGE/pipelines/NAME/STAGE.json      which artifact the pipeline used last

`manifest.json` is written last: no manifest, no artifact. Publishing can be interrupted anywhere and is finished by
the next run, because the complete manifest is first written down in the work folder.
"""
from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from infra import storage

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A published artifact. `manifest["files"]` lists {path, bytes, sha256}; `uri` is its folder."""

    stage: str
    fingerprint: str
    uri: str
    manifest: dict

    def file(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)

    def local(self) -> Path:
        """A local folder with the files: the artifact's own, or this machine's copy, named by what it holds."""
        return storage.localize(self.uri, f"{self.stage}-{files_digest(self.manifest['files'])}")

    @property
    def metrics(self) -> dict:
        return self.manifest["metrics"]

    @property
    def digest(self) -> str:
        """sha256 over the files' names and hashes: what the artifact holds, whatever recipe made it.

        What lies in `report/` is for people (curves with timings, pictures) and does not count: making an artifact
        again with equal results leaves what was made from it up to date.
        """
        return files_digest([f for f in self.manifest["files"] if not f["path"].startswith("report/")])


def _clear(work: str) -> None:
    """Remove a work folder whose artifact is published; what tells that it is done with goes last."""
    storage.remove(storage.join(work, "state"))
    storage.remove(storage.join(work, "output"))
    storage.remove(work)


def files_digest(files: list[dict]) -> str:
    return hashlib.sha256(json.dumps([[f["path"], f["sha256"]] for f in files]).encode()).hexdigest()


class ArtifactStore:
    """The artifacts under one storage URI."""

    def __init__(self, root: str):
        self.root = root

    def artifact_uri(self, stage: str, fingerprint: str) -> str:
        return storage.join(self.root, "artifacts", stage, fingerprint)

    def work_uri(self, stage: str, fingerprint: str) -> str:
        return storage.join(self.root, "work", stage, fingerprint)

    def find(self, stage: str, fingerprint: str) -> Artifact | None:
        uri = self.artifact_uri(stage, fingerprint)
        manifest = storage.read_json(storage.join(uri, MANIFEST))
        return Artifact(stage, fingerprint, uri, manifest) if manifest else None

    def all(self, stage: str | None = None) -> list[Artifact]:
        """Every published artifact (of one stage), by stage and fingerprint."""
        names = storage.list_files(storage.join(self.root, "artifacts", stage or ""))
        found = []
        for name in names:
            parts = ([stage] if stage else []) + name.split("/")
            if len(parts) == 3 and parts[2] == MANIFEST:
                found.append(self.find(parts[0], parts[1]))
        return [artifact for artifact in found if artifact]

    def has_work(self, stage: str, fingerprint: str) -> bool:
        return bool(storage.list_files(self.work_uri(stage, fingerprint)))

    def damage(self, artifact: Artifact, deep: bool = False) -> list[str]:
        """Paths that are missing or of another size; with `deep`, also those whose sha256 differs."""
        present = storage.list_files(artifact.uri)
        bad = []
        for entry in artifact.manifest["files"]:
            path = entry["path"]
            if present.get(path) != entry["bytes"]:
                bad.append(path)
            elif deep and storage.sha256(artifact.file(path)) != entry["sha256"]:
                bad.append(path)
        return bad

    def publish(self, stage: str, fingerprint: str, work: str, facts: dict) -> Artifact:
        """Turn `work`/output into the artifact. `facts` are the manifest's fields other than `files`.

        An artifact that is already there under the fingerprint (a forced or damaged one) is put aside, not lost.
        """
        output = storage.join(work, "output")
        files = [{"path": path, "bytes": size, "sha256": storage.sha256(storage.join(output, path))}
                 for path, size in storage.list_files(output).items()]
        storage.write_json(storage.join(work, "publish.json"), {**facts, "files": files})
        return self.finish_publishing(stage, fingerprint, work)

    def finish_publishing(self, stage: str, fingerprint: str, work: str) -> Artifact | None:
        """Complete a publication that was begun; None where none was, or where it was complete. Safe to repeat."""
        manifest = storage.read_json(storage.join(work, "publish.json"))
        if manifest is None:
            return None
        target = self.artifact_uri(stage, fingerprint)
        current = self.find(stage, fingerprint)
        if current and current.manifest == manifest:
            _clear(work)
            return None
        replaces = storage.join(work, "replaces.json")
        if current:
            storage.write_json(replaces, current.manifest)
        if old := storage.read_json(replaces):
            self._put_aside(Artifact(stage, fingerprint, target, old))
        for entry in manifest["files"]:
            source = storage.join(work, "output", entry["path"])
            if storage.exists(source):
                storage.move_file(source, storage.join(target, entry["path"]))
        storage.write_json(storage.join(target, MANIFEST), manifest)
        _clear(work)
        return Artifact(stage, fingerprint, target, manifest)

    def _put_aside(self, artifact: Artifact) -> None:
        target = storage.join(self.root, "replaced", artifact.stage,
                              f"{artifact.fingerprint}-{round(1000 * artifact.manifest['times']['ended_unix'])}")
        if storage.exists(storage.join(target, MANIFEST)):
            return  # done by a run that was interrupted later
        # The manifest goes first: from then on the folder is no artifact, and then its copy is complete at the end.
        storage.remove(artifact.file(MANIFEST))
        for entry in artifact.manifest["files"]:
            if storage.exists(artifact.file(entry["path"])):
                storage.move_file(artifact.file(entry["path"]), storage.join(target, entry["path"]))
        storage.write_json(storage.join(target, MANIFEST), artifact.manifest)

    def last_used(self, pipeline: str, stage: str) -> Artifact | None:
        """The artifact that the pipeline of this name used last for the stage, even if only its manifest is left."""
        record = storage.read_json(storage.join(self.root, "pipelines", pipeline, f"{stage}.json"))
        if record is None:
            return None
        uri = self.artifact_uri(stage, record["fingerprint"])
        return Artifact(stage, record["fingerprint"], uri, record["manifest"])

    def set_last_used(self, pipeline: str, artifact: Artifact) -> None:
        uri = storage.join(self.root, "pipelines", pipeline, f"{artifact.stage}.json")
        known = storage.read_json(uri)
        if known is None or known["manifest"] != artifact.manifest:
            storage.write_json(uri, {"fingerprint": artifact.fingerprint, "manifest": artifact.manifest})
