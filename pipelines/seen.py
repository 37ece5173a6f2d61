"""Who saw a file: its records, the steps of trainings that had them, and the models that came of those.

In: a file's place, or `SOURCE:PATH` as records have it; a pipeline's config, or a storage. Out: a dictionary, as JSON.
Every artifact of the storage is asked, of whatever pipeline. Steps are those of trainings with a ledger
(`stages.train.ledger`), under way or finished; of other stages that learn from records (a visual tokenizer, a study,
the text tokenizer of `pretokenize`) it is told that their corpus holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore
from omniloom.infra.errors import InputError, OmniLoomError
from omniloom.infra.training import checkpoint
from omniloom.pipelines import config as configs
from omniloom.pipelines import continuing
from omniloom.pipelines.graph import KNOWN
from omniloom.stages.train import ledger

if TYPE_CHECKING:
    from omniloom.infra.tracking import TrackingSettings
    from omniloom.stages.ingest.finding import FileName

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Where:
    """A storage, with the pipeline whose sources say which of its files is meant, where one is named."""

    root: str
    pipeline: configs.PipelineConfig | None = None

    @staticmethod
    def of(place: str, overrides: Sequence[str] = ()) -> Where:
        """InputError where it is neither a config nor a storage."""
        if not place.endswith((".yaml", ".yml")) and storage.exists(storage.join(storage.absolute(place), "artifacts")):
            if overrides:
                raise InputError("overrides are of a config, and this is a storage", field=overrides[0], file=place)
            return Where(storage.absolute(place))
        try:
            configs.find(place)
        except InputError as error:
            why = f"is no storage that something was made in, and {error.message}"
            raise InputError(why, file=place) from None
        loaded = configs.load(place, list(overrides))
        return Where(loaded.storage, loaded)

    @property
    def settings(self) -> TrackingSettings:
        from omniloom.infra.tracking import TrackingConfig, resolve_tracking

        return resolve_tracking(self.pipeline.tracking if self.pipeline else TrackingConfig(), self.root)


def who_saw(file: str, where: Where) -> dict[str, Any]:
    """The answer. InputError where nothing was ever ingested in the storage."""
    store = ArtifactStore(where.root)
    corpora = [artifact for stage in _makers("records") for artifact in store.all(stage)]
    if not corpora:
        raise InputError(f"nothing was ingested in {where.root} yet", field="CONFIG")
    names, below = _names(file, where)
    records, rejects, copies = _rows(corpora, names)
    tokens = {artifact.fingerprint: artifact for stage in _makers("tokens") for artifact in store.all(stage)}
    ids = sorted({row["id"] for row in [*records, *copies]})
    trainings = list(_trainings(store, tokens, ids)) if ids else []
    answer = {
        "file": file,
        "records": records,
        "copies": copies,
        "rejects": rejects,
        "trainings": trainings,
        "learnt_from": _learners(store, tokens, records, copies),
    }
    _add_models(store, where, trainings, answer)
    seen = any(training["uses"] for training in trainings)
    return {**answer, "seen": seen, "answer": _in_words(answer, below)}


def _makers(role: str) -> list[str]:
    return [stage.name for stage in KNOWN if stage.makes == role]


def _names(file: str, where: Where) -> tuple[list[FileName], list[str]]:
    """How records may call the file, and the roots that it lies below none of."""
    from omniloom.stages.ingest.finding import FileName

    source, colon, path = file.partition(":")
    named = [FileName(source, path)] if colon and path and not path.startswith("//") else []
    place = storage.absolute(file)
    if where.pipeline is None:
        parts = place.strip("/").split("/")
        return [*named, *(FileName(None, "/".join(parts[at:])) for at in range(len(parts)))], []
    found, roots = [*named, FileName(None, file)] if "://" in file else named, []
    for stage in where.pipeline.stages.configured():
        own = getattr(where.pipeline.stages, stage)
        for number, config in enumerate(getattr(own, "sources", ())):
            for uri in filter(None, (config.uri, getattr(config, "media_root", None))):
                roots.append(root := storage.absolute(uri).rstrip("/"))
                if place == root:
                    found.append(FileName(own.source_name(number), root.rpartition("/")[2]))
                elif place.startswith(f"{root}/"):
                    found.append(FileName(own.source_name(number), place[len(root) + 1 :]))
    return found, [] if found else roots


def _rows(corpora: list[Artifact], names: list[FileName]) -> tuple[list[dict], list[dict], list[dict]]:
    """Records, rejects and copies over all artifacts of records, each with the artifacts that have it so."""
    from omniloom.stages.ingest.finding import find

    kept: tuple[dict[str, dict], ...] = ({}, {}, {})
    for artifact in corpora if names else ():
        found = find(artifact.uri, names)
        for rows, known in zip((found.records, found.rejects, found.copies), kept, strict=True):
            for row in rows:
                said = known.setdefault(repr(sorted(row.items())), {**row, "artifacts": []})
                said["artifacts"].append({"stage": artifact.stage, "fingerprint": artifact.fingerprint})
    records, rejects, copies = (list(known.values()) for known in kept)
    return records, rejects, copies


def _trainings(store: ArtifactStore, tokens: dict[str, Artifact], ids: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What each training used the documents of these ids for, where its tokens hold one."""
    for stage in _makers("model"):
        for training, folder in continuing.trainings(store, stage).items():
            told = {"stage": stage, "training": training, "pipeline": "", "uses": [], "unused": []}
            try:
                found = _of_training(ledger.read(folder), folder, tokens, ids)
            except (OmniLoomError, ValueError) as error:  # of another version
                found = {"unknown": str(error)}
            if found:
                yield told | found


def _of_training(
    known: ledger.Ledger | None, folder: str, tokens: dict[str, Artifact], ids: Sequence[str]
) -> dict[str, Any] | None:
    """None where its tokens hold none of them."""
    from omniloom.stages.data.tokens import TokenSet
    from omniloom.stages.train.uses import Uses, numbers

    if known is None:
        return None
    own = [period["tokens"]["fingerprint"] for period in known["periods"]]
    facts = {"pipeline": known["pipeline"], "finished": "position" in known}
    if gone := [fingerprint for fingerprint in own if fingerprint not in tokens]:
        return {**facts, "unknown": f"its tokens {gone[0][:12]} are gone"}
    indices = {split: [TokenSet(tokens[name], split).index for name in own] for split in SPLITS}
    held = {
        name: [split for split, found in indices.items() if any(len(numbers(index, [name])) for index in found)]
        for name in ids
    }
    if not any(held.values()):
        return None
    if "position" not in known:
        if (kept := checkpoint.newest_facts(folder)) is None:
            unused = [{"id": name, "splits": splits, "why": "no checkpoint yet"} for name, splits in held.items()]
            return {**facts, "steps": 0, "unused": unused}
        known = ledger.closed_by(known, kept)
    training = Uses(known, indices["train"])
    found = training.of([name for name, splits in held.items() if "train" in splits])
    used = {use["id"] for use in found}
    unused = [
        {"id": name, "splits": splits, "why": training.why_not(name) if "train" in splits else f"held out: {splits[0]}"}
        for name, splits in held.items()
        if splits and name not in used
    ]
    left_out = {name: step for name, step in known["left_out"].items() if name in used}
    return {**facts, "steps": known["steps"], "uses": found, "unused": unused, "left_out": left_out}


def _learners(
    store: ArtifactStore, tokens: dict[str, Artifact], records: list[dict], copies: list[dict]
) -> list[dict[str, Any]]:
    """Artifacts without a ledger that learnt from a corpus whose train split holds the file."""
    trained = [row for row in records if row["split"] == "train"]
    corpora = {made["fingerprint"]: row["kind"] for row in trained for made in row["artifacts"]}
    # A copy's content is in the same corpus, in a split that the record of that content has.
    corpora = {made["fingerprint"]: "" for row in copies for made in row["artifacts"]} | corpora
    found = []
    for stage in (stage for stage in KNOWN if stage.makes not in ("records", "model", "evaluation")):
        for artifact in store.all(stage.name):
            read = set(artifact.manifest["inputs"].values()) & corpora.keys()
            if not read or not _learns(artifact, stage.makes, {corpora[name] for name in read}):
                continue
            what = "its text tokenizer" if stage.makes == "tokens" else "its weights"
            steps = artifact.metrics.get("steps")
            found.append({"stage": stage.name, "fingerprint": artifact.fingerprint, "what": what, "steps": steps})
    return found


def _learns(artifact: Artifact, role: str, kinds: set[str]) -> bool:
    """Whether making the artifact learnt from records of one of these kinds; "" is an unknown one."""
    config = artifact.manifest["config"]
    if role == "tokens":
        return not config.get("text_tokenizer")
    if role == "tokenizer":
        wanted = set((config.get("data") or {}).get("kinds") or kinds)
        return bool(kinds & (wanted | {""}))
    return True


def _add_models(store: ArtifactStore, where: Where, trainings: list[dict], answer: dict[str, Any]) -> None:
    """The models of the trainings that used it: artifacts with their digests, and versions in the registry."""
    finished = {(t["stage"], t["training"]): t for t in trainings if t["uses"] and t.get("finished")}
    artifacts = [artifact for stage, name in finished if (artifact := store.find(stage, name))]
    versions: dict[str, list[dict[str, Any]]] = {}
    if artifacts:
        try:
            versions = _registered(where, [artifact.fingerprint for artifact in artifacts])
        except Exception as error:  # whatever the registry answers
            answer["registry"] = f"does not answer: {type(error).__name__}: {error}".splitlines()[0]
    answer["models"] = [
        {
            "training": artifact.fingerprint,
            "artifact": artifact.uri,
            "digest": artifact.digest,
            "registered": versions.get(artifact.fingerprint, []),
        }
        for artifact in artifacts
    ]


def _registered(where: Where, fingerprints: list[str]) -> dict[str, list[dict[str, Any]]]:
    from omniloom.infra.tracking.registry import versions

    settings = where.settings
    if settings.database and not settings.database.exists():
        return {}
    return versions(settings, fingerprints)


def _in_words(answer: dict[str, Any], roots: list[str]) -> str:
    file, trainings = answer["file"], answer["trainings"]
    uses = sum(len(training["uses"]) for training in trainings)
    if uses:
        which = sum(bool(training["uses"]) for training in trainings)
        return f"{file}: {uses:,} uses in {which} training{'s' * (which > 1)}"
    if held := sorted({row["split"] for row in answer["records"]} - {"train"}):
        return f"{file}: held out ({' and '.join(held)}); no training step saw it"
    if answer["records"] or answer["copies"]:
        return f"{file}: ingested; no training step saw it"
    if reasons := sorted({row["code"] for row in answer["rejects"]}):
        return f"{file}: rejected at ingest ({', '.join(reasons)}); nothing saw it"
    where = f"; it lies below none of the sources {', '.join(roots)}" if roots else ""
    return f"{file}: never ingested{where}"
