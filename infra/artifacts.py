"""Artifacts: immutable folders addressed by what made them, and the work folders that they are made in.

    STORAGE/artifacts/STAGE/FINGERPRINT/   manifest.json and the files it names; published, read-only
    STORAGE/work/STAGE/FINGERPRINT/        output/ (becomes the artifact) and state/: checkpoints/ and history.jsonl,
                                           which trainings go on from; all else says what of the output is done;
                                           inputs.json, the digests of what it is made from; in-place.json where
                                           there is no output/, since the files are written where they will lie
    STORAGE/replaced/STAGE/...             what a forced run put aside
    STORAGE/damaged/STAGE/FINGERPRINT.json which files were found damaged, until the artifact is made again
    STORAGE/pipelines/NAME/STAGE.json      which artifact the pipeline used last

`manifest.json` is written last: no manifest, no artifact. Publishing can be interrupted anywhere, by a power cut too,
and is finished by the next run, because the complete manifest is first written down in the work folder. Whoever
finishes what another process began looks at the files first: only what they are can be declared.

On a local disk the output is renamed into the artifact's folder. An object store would copy it, so there a stage writes
in place: into the artifact's folder itself, which is no artifact without its manifest. A run goes on with the files
that lie there, or removes them where it begins anew; where an artifact lies there that is to be replaced, the output is
written apart and copied, so that the old one stays until the new one is whole. Readers take the files that the manifest
names (`names_below`), never a listing: a process that lost its lease may still write beside them.

An artifact that comes out as an older one of its stage did, file by file, says so in its manifest (`same_as`, the
older one's fingerprint): what is made from it has the fingerprints that it would have with the older one, so that what
is there already is up to date.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omniloom.infra import integrity, storage
from omniloom.infra.errors import InputError, OmniLoomError

MANIFEST = "manifest.json"
RESUME = "resume/"
# In the state of a work folder: of files of its output {bytes, sha256} by path, which need not be read again to be
# published: those of an earlier artifact, and those whose writers took the hash as they wrote.
TAKEN_OVER, WRITTEN = "taken-over.json", "written.json"
_IN_PLACE = "in-place.json"  # of a work folder
_PLACE = re.compile(r".*/artifacts/\w+/[0-9a-f]{64}(?=/|$)")  # of an artifact


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
        """A local folder with the files: the artifact's own, or this machine's copy, named by what it holds, without
        what a later training goes on from."""
        files = [entry for entry in self.manifest["files"] if not entry["path"].startswith(RESUME)]
        digest = files_digest(self.manifest["files"])
        folder = storage.localize(self.uri, f"{self.stage}-{digest}", [entry["path"] for entry in files])
        if not storage.is_local(self.uri) and (bad := integrity.wrong(str(folder), files)):
            storage.remove(str(folder))
            raise OmniLoomError(
                f"{self.uri}: the copy on this machine, {folder}, is damaged and was removed ({some(bad)}); run again"
            )
        return folder

    @property
    def identity(self) -> str:
        """The fingerprint that stands for what the artifact holds in the fingerprints of what is made from it."""
        return self.manifest.get("same_as") or self.fingerprint

    @property
    def metrics(self) -> dict:
        return self.manifest["metrics"]

    @property
    def digest(self) -> str:
        """sha256 over the files' names and hashes: what the artifact holds, whatever recipe made it.

        What lies in `report/` is for people (curves with timings, pictures) and does not count, nor does what lies in
        `resume/`, by which a training can be gone on from (divided as its ranks were): making an artifact again with
        equal results leaves what was made from it up to date.
        """
        return files_digest([f for f in self.manifest["files"] if not f["path"].startswith(("report/", RESUME))])


def _clear(work: str) -> None:
    """Remove a work folder whose artifact is published; what tells that it is done with goes last."""
    storage.remove(storage.join(work, "state"))
    storage.remove(storage.join(work, "output"))
    storage.remove(work)


def some(paths: list[str]) -> str:
    """The first few of them, for a message."""
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def names_below(uri: str, folder: str) -> list[str]:
    """The names of the files right below a folder of an artifact, sorted: those that its manifest names, or while it is
    made, and has none, those that lie there."""
    manifest = storage.read_json(storage.join(uri, MANIFEST))
    if manifest is None:
        return [name for name in storage.list_files(storage.join(uri, folder)) if "/" not in name]
    paths = (entry["path"].rpartition("/") for entry in manifest["files"])
    return sorted(name for parent, _, name in paths if parent == folder)


def require_finished(uri: str) -> None:
    """InputError where the place is an artifact's folder, or below one, and the artifact is not published (yet)."""
    if (place := _PLACE.match(uri)) and not storage.exists(storage.join(place[0], MANIFEST)):
        raise InputError(
            f"is not finished: {place[0]} has no {MANIFEST}; let the run that makes it end, or run it again", file=uri
        )


def check_folder(uri: str, local: str) -> None:
    """OmniLoomError where files of a published artifact, or of a folder of one, are damaged. `local` is the folder
    `uri`, or this machine's copy. What lies beside no manifest cannot be checked."""
    for root, prefix in ((uri, ""), (uri.rpartition("/")[0], f"{uri.rpartition('/')[2]}/")):
        if manifest := storage.read_json(storage.join(root, MANIFEST)):
            files = [
                {**entry, "path": entry["path"].removeprefix(prefix)}
                for entry in manifest["files"]
                if entry["path"].startswith(prefix)
            ]
            if bad := integrity.wrong(local, files):
                raise OmniLoomError(
                    f"{uri} is damaged: {some(bad)} not as the manifest says; put back a copy, or run "
                    "the pipeline again: after `omniloom verify CONFIG` it makes the artifact anew"
                )
            return


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

    def has_work(self, stage: str, fingerprint: str, made_from: dict[str, str] | None = None) -> bool:
        """Whether something was begun that can go on, from inputs with these digests where they are known."""
        work = self.work_uri(stage, fingerprint)
        begun_from = storage.read_json(storage.join(work, "inputs.json")) if made_from else None
        return bool(storage.list_files(work)) and begun_from in (None, made_from)

    def begin_work(self, stage: str, fingerprint: str, made_from: dict[str, str]) -> str:
        """Begin, or go on: the URI of the folder that the stage writes into. Notes down the digests of the inputs that
        the work is from: it does not go on from others."""
        work = self.work_uri(stage, fingerprint)
        inputs, in_place = storage.join(work, "inputs.json"), storage.join(work, _IN_PLACE)
        begun = storage.exists(inputs)
        if self.find(stage, fingerprint):
            storage.remove(in_place)
        elif not (begun or storage.is_local(work) or storage.is_process_local(work)):
            storage.remove(self.artifact_uri(stage, fingerprint))  # of work that was given up
            storage.write_json(in_place, {})
        storage.write_json(inputs, made_from)
        return self._output(stage, fingerprint, work)

    def _output(self, stage: str, fingerprint: str, work: str) -> str:
        in_place = storage.exists(storage.join(work, _IN_PLACE))
        return self.artifact_uri(stage, fingerprint) if in_place else storage.join(work, "output")

    def damage(self, artifact: Artifact) -> list[str]:
        """Paths that are missing, of another size, or that `examine` has found damaged. Reads no content."""
        noted = set((storage.read_json(self._findings(artifact.stage, artifact.fingerprint)) or {}).get("files", ()))
        bad = set(integrity.wrong_sizes(artifact.uri, artifact.manifest["files"])) | noted
        return [entry["path"] for entry in artifact.manifest["files"] if entry["path"] in bad]

    def examine(self, artifact: Artifact, remembered: bool = False) -> list[str]:
        """Paths that are missing, of another size or of another sha256, noted down so that every later plan sees them.
        `remembered`: on a local disk, what was found right on this machine and not written since is not read again;
        elsewhere, where reading is a transfer and the store checks what it keeps, sizes alone count."""
        files = artifact.manifest["files"]
        if remembered and not storage.is_local(artifact.uri):
            return self.damage(artifact)
        bad = integrity.wrong(artifact.uri, files, remembered)
        if bad:
            storage.write_json(self._findings(artifact.stage, artifact.fingerprint), {"files": bad})
        else:
            self._forget(artifact.stage, artifact.fingerprint)
        return bad

    def _findings(self, stage: str, fingerprint: str) -> str:
        return storage.join(self.root, "damaged", stage, f"{fingerprint}.json")

    def _forget(self, stage: str, fingerprint: str) -> None:
        if storage.exists(note := self._findings(stage, fingerprint)):
            storage.remove(note)

    def publish(self, stage: str, fingerprint: str, work: str, facts: dict) -> Artifact:
        """Turn the output into the artifact. `facts` are the manifest's fields other than `files`.

        An artifact that is already there under the fingerprint (a forced or damaged one) is put aside, not lost.
        """
        output = self._output(stage, fingerprint, work)
        storage.sync(output)
        manifest = {**facts, "files": integrity.describe(output, self.taken_over(work) | self._written(work))}
        if same := self._equal(Artifact(stage, fingerprint, output, manifest)):
            manifest["same_as"] = same
        storage.write_json(storage.join(work, "publish.json"), manifest)
        return self._place(stage, fingerprint, work, manifest)

    @staticmethod
    def taken_over(work: str) -> dict[str, dict]:
        """{bytes, sha256} by path of the output's files that are an earlier artifact's."""
        return storage.read_json(storage.join(work, "state", TAKEN_OVER)) or {}

    @staticmethod
    def _written(work: str) -> dict[str, dict]:
        return storage.read_json(storage.join(work, "state", WRITTEN)) or {}

    def _equal(self, made: Artifact) -> str | None:
        """What stands for an older artifact of the stage that holds the same: the one that the pipeline used last,
        else the newest. None where there is none, or where that is the artifact itself."""
        last = self.last_used(made.manifest.get("pipeline", ""), made.stage)
        older = [last] if last and last.digest == made.digest else self._equals(made)
        return older[0].identity if older and older[0].identity != made.fingerprint else None

    def _equals(self, made: Artifact) -> list[Artifact]:
        """The published artifacts of the stage that hold the same, the newest first."""
        found = []
        for name in storage.list_files(storage.join(self.root, "artifacts", made.stage)):
            fingerprint, _, file = name.partition("/")
            with contextlib.suppress(InputError):  # another one's manifest is damaged
                if file == MANIFEST and (known := self.find(made.stage, fingerprint)) and known.digest == made.digest:
                    found.append(known)
        return sorted(found, key=lambda artifact: artifact.manifest["times"]["ended_unix"], reverse=True)

    def finish_publishing(
        self, stage: str, fingerprint: str, work: str, say: Callable[[str], None] = lambda text: None
    ) -> Artifact | None:
        """Complete a publication that was begun; None where none was, or where it was complete. Safe to repeat.

        Where files are no longer what they were, none of it is published: the output is dropped, the stage goes on
        from its checkpoints, and `say` is told which files.
        """
        manifest = storage.read_json(storage.join(work, "publish.json"))
        if manifest is None:
            return None
        current = self.find(stage, fingerprint)
        if current and current.manifest == manifest:
            _clear(work)
            return None
        target = self.artifact_uri(stage, fingerprint)
        output = self._output(stage, fingerprint, work)
        waiting = storage.list_files(output) if output != target else {}
        for folder in {output, target}:
            files = [e for e in manifest["files"] if (e["path"] in waiting) == (folder != target)]
            if bad := integrity.wrong(folder, files, remembered=False):
                say(
                    f"was made and not yet published when it was interrupted, and is damaged ({some(bad)} in {folder});"
                    " it is made again, a training from its last checkpoint"
                )
                self._withdraw(stage, fingerprint, work)
                return None
        return self._place(stage, fingerprint, work, manifest)

    def _withdraw(self, stage: str, fingerprint: str, work: str) -> None:
        """Drop a publication, its output and what says that parts of the output are done; trainings keep what they go
        on from. An artifact that was being put aside for it is."""
        state, target = storage.join(work, "state"), self.artifact_uri(stage, fingerprint)
        for name in storage.list_files(state):
            if not {"checkpoints", "history.jsonl"} & set(name.split("/")):
                storage.remove(storage.join(state, name))
        storage.remove(storage.join(work, "output"))
        if not self.find(stage, fingerprint):
            if old := storage.read_json(storage.join(work, "replaces.json")):
                self._put_aside(Artifact(stage, fingerprint, target, old))
            storage.remove(target)
        storage.sync(work)
        storage.remove(storage.join(work, "publish.json"))

    def _place(self, stage: str, fingerprint: str, work: str, manifest: dict) -> Artifact:
        target, output = self.artifact_uri(stage, fingerprint), self._output(stage, fingerprint, work)
        if output != target:
            self._make_room(stage, fingerprint, work)
            waiting = storage.list_files(output)
            storage.move_files(output, target, [e["path"] for e in manifest["files"] if e["path"] in waiting])
        self._forget(stage, fingerprint)
        storage.write_json(storage.join(target, MANIFEST), manifest)
        integrity.remember(target, manifest["files"])
        _clear(work)
        return Artifact(stage, fingerprint, target, manifest)

    def _make_room(self, stage: str, fingerprint: str, work: str) -> None:
        """Put aside the artifact that is to be replaced, if there is one."""
        replaces = storage.join(work, "replaces.json")
        if current := self.find(stage, fingerprint):
            storage.write_json(replaces, current.manifest)
        if old := storage.read_json(replaces):
            self._put_aside(Artifact(stage, fingerprint, self.artifact_uri(stage, fingerprint), old))

    def _put_aside(self, artifact: Artifact) -> None:
        target = storage.join(
            self.root,
            "replaced",
            artifact.stage,
            f"{artifact.fingerprint}-{round(1000 * artifact.manifest['times']['ended_unix'])}",
        )
        if storage.exists(storage.join(target, MANIFEST)):
            return  # done by a run that was interrupted later
        # The manifest goes first: from then on the folder is no artifact, and then its copy is complete at the end.
        storage.remove(artifact.file(MANIFEST))
        present = storage.list_files(artifact.uri)
        paths = [entry["path"] for entry in artifact.manifest["files"]]
        storage.move_files(artifact.uri, target, [path for path in paths if path in present])
        storage.write_json(storage.join(target, MANIFEST), artifact.manifest)

    def placed_unix(self, artifact: Artifact) -> float:
        """When the artifact came to this storage, made or copied."""
        ended = artifact.manifest["times"]["ended_unix"]
        try:
            return max(ended, storage.modified_unix(artifact.file(MANIFEST)))
        except (NotImplementedError, OSError):
            return ended

    def drop(self, artifact: Artifact, in_use: Callable[[], bool]) -> bool:
        """Delete the artifact; False, and it stays, where it is in use. To be called under its stage's lease.

        The manifest goes first and `in_use` is asked after that: a run that has noted down by then that it uses the
        artifact is seen here, and one that notes it down later looks for the manifest after that.
        """
        storage.remove(artifact.file(MANIFEST))
        if in_use():
            storage.write_json(artifact.file(MANIFEST), artifact.manifest)
            return False
        storage.remove(artifact.uri)
        self._forget(artifact.stage, artifact.fingerprint)
        return True

    def remove_leftovers(self) -> None:
        """Remove what writes that were killed left behind, where this storage is a local disk."""
        if (root := storage.local_path(self.root)) is None:
            return
        for pattern in ("", "runs", "pipelines/*", "leases/*", "damaged/*", "artifacts/*/*", "work/*/*"):
            for folder in root.glob(pattern) if pattern else (root,):
                storage.remove_leftovers(str(folder))

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
