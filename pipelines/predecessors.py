"""The earlier artifact that a stage's output is built on: what was made of an older corpus with the same options.

In: a planned stage whose module says by `BUILDS_ON` that it can. Out: the artifact that the pipeline used last, else
the newest of the stage, of which version, config (but for the fields that `BUILDS_ON` names), outside files and inputs
(but for the records) are as they are now, and which is not damaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.infra.errors import InputError
from omniloom.pipelines.fingerprint import canonical, differences
from omniloom.pipelines.planned import PlannedStage

_NOTE = "predecessor.json"
RECORDS = "records"


def builds_on(planned: PlannedStage) -> frozenset[str] | None:
    """The fields that may differ; None where the stage always begins anew."""
    found = getattr(planned.stage.module, "BUILDS_ON", None)
    return None if found is None else frozenset(found)


def fits(planned: PlannedStage, earlier: Artifact, digests: Mapping[str, str]) -> bool:
    """Whether the stage's output can be built on the earlier artifact, as far as manifests tell. `digests` of its
    inputs by the stages' names."""
    free, old = builds_on(planned), earlier.manifest
    if free is None or old["version"] != planned.stage.module.VERSION or set(old["input_digests"]) != set(digests):
        return False
    others = [name for role, name in planned.inputs.items() if role != RECORDS]
    if any(old["input_digests"][name] != digests[name] for name in others):
        return False
    config = differences(old["config"], canonical(planned.config, planned.name))
    before, now = (
        {field: facts["digest"] for field, facts in known.items()} for known in (old["outside"], planned.outside)
    )
    changed = [path for path, _, _ in [*config, *differences(before, now)]]
    return all(path.split(".")[0] in free for path in changed)


def find(store: ArtifactStore, pipeline: str, planned: PlannedStage, digests: Mapping[str, str]) -> Artifact | None:
    """The artifact to build on; None where there is none."""
    if builds_on(planned) is None or storage.is_process_local(store.root):  # its files are this process's alone
        return None
    for earlier in _candidates(store, pipeline, planned):
        if earlier.fingerprint != planned.fingerprint and fits(planned, earlier, digests):
            if not store.examine(earlier, remembered=True):
                return earlier
    return None


def _candidates(store: ArtifactStore, pipeline: str, planned: PlannedStage) -> Iterator[Artifact]:
    last = store.last_used(pipeline, planned.name)
    if last and (found := store.find(planned.name, last.fingerprint)):
        yield found
    with contextlib.suppress(InputError):  # another one's manifest is damaged
        yield from sorted(store.all(planned.name), key=lambda a: a.manifest["times"]["ended_unix"], reverse=True)


def settled(
    store: ArtifactStore, pipeline: str, planned: PlannedStage, digests: Mapping[str, str], work: str, anew: bool
) -> Artifact | None:
    """The artifact that the work folder's output is built on, chosen when the work begins and noted down there. Where
    it is gone since, so is the work. `anew`: the stage is forced, or what it had made is damaged; it builds on none."""
    note = storage.join(work, _NOTE)
    if (noted := storage.read_json(note)) is not None:
        if not noted["fingerprint"]:
            return None
        found = store.find(planned.name, noted["fingerprint"])
        if found and not store.damage(found):
            return found
        storage.remove(work)
    chosen = None if anew else find(store, pipeline, planned, digests)
    if builds_on(planned) is not None:
        storage.write_json(note, {"fingerprint": chosen.fingerprint if chosen else ""})
    return chosen
