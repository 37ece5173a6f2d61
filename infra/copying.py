"""Copying: an artifact into another storage, on any filesystem. Its files are hashed there before its manifest is
written: until then there is no artifact, and a copy that was interrupted is begun again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from omniloom.infra import integrity, storage
from omniloom.infra.artifacts import MANIFEST, Artifact, ArtifactStore, some
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.lease import Lease

_TOGETHER = 16  # files that are copied at a time


def copy_artifact(artifact: Artifact, target: ArtifactStore) -> bool:
    """False where the artifact is there already. InputError where another content is there under its fingerprint;
    OmniLoomError naming the files that did not arrive as the manifest has them."""
    lease = storage.join(target.root, "leases", artifact.stage, f"{artifact.fingerprint}.json")
    with Lease(lease) as held:
        if there := target.find(artifact.stage, artifact.fingerprint):
            if there.digest != artifact.digest:
                raise InputError(
                    "another run made the same there, with other content; remove one of the two, or copy to another "
                    "storage",
                    field="STORAGE",
                    file=there.uri,
                )
            return False
        uri, files = target.artifact_uri(artifact.stage, artifact.fingerprint), artifact.manifest["files"]
        present = storage.list_files(uri)
        missing = [entry["path"] for entry in files if present.get(entry["path"]) != entry["bytes"]]
        with ThreadPoolExecutor(_TOGETHER) as pool:
            list(pool.map(lambda path: storage.copy_file(artifact.file(path), storage.join(uri, path)), missing))
        if bad := integrity.wrong(uri, files, remembered=False):
            for path in bad:
                storage.remove(storage.join(uri, path))
            raise OmniLoomError(
                f"{artifact.uri}: {some(bad)} not as the manifest says, or changed on the way to {uri}; "
                "`omniloom verify` tells whether the files here are damaged; then copy again"
            )
        held.require()
        storage.write_json(storage.join(uri, MANIFEST), artifact.manifest)
        return True
