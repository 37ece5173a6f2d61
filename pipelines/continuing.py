"""Trainings that go on from a step of another one: where that lies, whether the two fit each other, and what there is
to go on from. In: a plan with `continue_from` in a stage's config, or without one, for the hint. Out: `Continued` for
the stage's body; InputErrors that name the field and what to write there; before anything is spent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import MANIFEST, RESUME, Artifact, ArtifactStore
from omniloom.infra.errors import InputError, OmniLoomError, within
from omniloom.pipelines.config import PipelineConfig, placed
from omniloom.pipelines.planned import PlannedStage
from omniloom.stages.base import Continued
from omniloom.stages.train import continuing, ledger

FIELD = "continue_from"
_FINISHED = RESUME.rstrip("/")  # the folder of an artifact that is as a training's state


@dataclass(frozen=True)
class Trainings:
    """Those of a plan's stages."""

    config: PipelineConfig
    store: ArtifactStore
    stages: list[PlannedStage]

    def __getitem__(self, name: str) -> PlannedStage:
        return next(planned for planned in self.stages if planned.name == name)


def asked(planned: PlannedStage) -> Any:
    """What the stage's config says of an earlier training; None where nothing."""
    return getattr(planned.config, FIELD, None)


def continued(plan: Trainings, planned: PlannedStage) -> Continued | None:
    """What the stage's training goes on from; None where it begins by itself. InputError where that is not there."""
    if not (before := asked(planned)):
        return None
    if storage.is_process_local(plan.store.root):
        raise InputError("other processes cannot read a checkpoint in this storage", field="storage")
    with within(f"stages.{planned.name}.{FIELD}"):
        own = _state(plan.store, planned.name, planned.fingerprint)
        if steps_of(own) and (begun := ledger.read(own)):
            return Continued(begun, own, "", corpora(plan.store, begun))
        found = earlier(plan.store, planned.name, before.training)
        _require_step(planned.name, found.state, before)
        return found


def _state(store: ArtifactStore, stage: str, training: str) -> str:
    return storage.join(store.work_uri(stage, training), "state")


def earlier(store: ArtifactStore, stage: str, training: str) -> Continued:
    """An earlier training, finished or not. InputError where there is none that can be gone on from."""
    if artifact := store.find(stage, training):
        if (known := ledger.read(artifact.uri)) is None:
            raise InputError(_no_books(artifact.uri), field="training")
        history = artifact.file("report", "history.jsonl")
        return Continued(known, artifact.file(_FINISHED), history, corpora(store, known))
    state = _state(store, stage, training)
    if known := ledger.read(state):
        return Continued(known, state, storage.join(state, "history.jsonl"), corpora(store, known))
    if storage.list_files(state):
        raise InputError(_no_books(state), field="training")
    there = ", ".join(sorted(trainings(store, stage))) or "none"
    raise InputError(f"no training {training} of {stage} in {store.root}; there are: {there}", field="training")


def _no_books(uri: str) -> str:
    return f"{uri} has no {ledger.FILE}: a version of OmniLoom trained it that kept none; it cannot be gone on from"


def _require_step(stage: str, state: str, before: Any) -> None:
    steps = steps_of(state)
    if before.step in steps:
        return
    if not steps and state.endswith(f"/{_FINISHED}"):
        raise InputError(
            f"training {before.training} is finished and kept no checkpoint; with stages.{stage}.keep_checkpoint: true "
            f"a training keeps one (--force {stage} trains it again)",
            field="training",
        )
    there = ", ".join(map(str, steps)) or "none"
    raise InputError(
        f"expected a step that the training has a checkpoint of ({there}), got {before.step}", field="step"
    )


def steps_of(state: str) -> list[int]:
    """The steps of the checkpoints in a state folder, rising."""
    names = storage.list_files(storage.join(state, "checkpoints"))
    return sorted(int(name[5:-5]) for name in names if "/" not in name and name[:5] == "step-" and name[-5:] == ".json")


def corpora(store: ArtifactStore, known: ledger.Ledger) -> tuple[Artifact, ...]:
    """The tokens of each period. InputError where some are gone."""
    found = []
    for told in (period["tokens"] for period in known["periods"]):
        artifact = store.find(told["stage"], told["fingerprint"])
        if artifact is None:
            raise InputError(
                f"the tokens that it was trained on are gone: {store.artifact_uri(told['stage'], told['fingerprint'])};"
                " their index says where the order of documents stands",
                field="training",
            )
        found.append(artifact)
    return tuple(found)


def misfits(plan: Trainings) -> list[InputError]:
    """What of the plan's configs cannot go on from the trainings that they name."""
    errors: list[InputError] = []
    for planned in plan.stages:
        if not asked(planned) or planned.status == "cached" or planned.name in plan.config.pins:
            continue
        try:
            found = continued(plan, planned)
        except InputError as error:
            errors += error.each()
            continue
        if found and found.history:  # else it has begun, and was asked then
            errors += _of_configs(planned, found)
            errors += _of_tokens(plan, planned, found)
    return [placed(plan.config, error) for error in errors]


def _of_configs(planned: PlannedStage, found: Continued) -> Iterator[InputError]:
    step = asked(planned).step
    old = [period for period in found.ledger["periods"] if period["step"] < step][-1]
    try:
        before = ledger.config_of(old)
    except ValueError:
        yield InputError(
            "another version of OmniLoom wrote the earlier training's config, which this one does not read",
            field=f"stages.{planned.name}.{FIELD}.training",
        )
        return
    for error in continuing.refusals(before, planned.config, step):
        yield InputError(error.message, field=f"stages.{planned.name}.{error.field}")


def _of_tokens(plan: Trainings, planned: PlannedStage, found: Continued) -> Iterator[InputError]:
    """That the tokens are, or will be, in the terms of the earlier training: by its tokenizers."""
    tokens = plan[planned.inputs["tokens"]]
    if tokens.status == "cached" and tokens.artifact:
        try:
            facts = storage.load_json(tokens.artifact.file("tokens.json"))
            continuing.check_tokens(found.ledger, facts, tokens.uri)
        except InputError as error:
            yield InputError(error.message, field=f"stages.{planned.name}.{FIELD}", file=error.file)
        return
    last, text = found.ledger["periods"][-1]["tokens"], getattr(tokens.config, "text_tokenizer", None)
    if not text or _text_digest(text) != last["text_digest"]:
        uri = storage.join(plan.store.artifact_uri(last["stage"], last["fingerprint"]), "text.json")
        yield InputError(
            f"the training goes on with the text tokenizer that it has; set it to {uri}",
            field=f"stages.{tokens.name}.text_tokenizer",
        )
    if "tokenizer" in planned.inputs and last["visual_digest"]:
        yield from _of_visual(plan, plan[planned.inputs["tokenizer"]], last)


def _of_visual(plan: Trainings, visual: PlannedStage, last: dict) -> Iterator[InputError]:
    made = visual.artifact if visual.status == "cached" else None
    if made and made.digest == last["visual_digest"]:
        return
    others = [
        f"pins.{p.name}={known.fingerprint}"
        for p in plan.stages
        if p.stage.makes == "tokenizer" and p.name != visual.name and p.status != "cached"
        if (known := plan.store.last_used(plan.config.name, p.name))
    ]
    yield InputError(
        f"{visual.name} would be another; the training goes on with the visual tokenizer that it has: "
        + " ".join([*others, f"pins.{visual.name}={last['visual_tokenizer']}"]),
        field=f"pins.{visual.name}",
    )


def _text_digest(uri: str) -> str:
    from omniloom.stages.checkpoints.text_tokenizer import read_text_tokenizer

    try:
        return read_text_tokenizer(uri).digest
    except Exception:  # pretokenize says so
        return ""


def trainings(store: ArtifactStore, stage: str) -> dict[str, str]:
    """By fingerprint, the folder that has the ledger of each training of a stage: its artifact, or its state."""
    found = {}
    for place, parts in (("work", ("state", ledger.FILE)), ("artifacts", (ledger.FILE,))):
        root = storage.join(store.root, place, stage)
        names = storage.list_files(root)
        for name in names:
            training, *below = name.split("/")
            if tuple(below) == parts and (place == "work" or f"{training}/{MANIFEST}" in names):
                found[training] = storage.join(root, name.removesuffix(f"/{ledger.FILE}"))
    return found


def hints(plan: Trainings) -> list[str]:
    """Of each stage that would train from step 0: that a training of this pipeline came further, and may be gone on
    from with this config."""
    return [text for planned in plan.stages if planned.status == "run" and (text := _hint(plan, planned))]


def _hint(plan: Trainings, planned: PlannedStage) -> str | None:
    if not hasattr(planned.config, FIELD) or asked(planned):
        return None
    best = (0, "")
    for training, folder in trainings(plan.store, planned.name).items():
        try:
            best = max(best, (_goes_on_from(plan, planned, training, folder), training))
        except (OmniLoomError, ValueError):  # of another version
            continue
    step, training = best
    if not step:
        return None
    return (
        f"{planned.name}: a training of this pipeline stands at step {step:,}, and only what may change was changed; "
        f"it goes on with 'stages.{planned.name}.{FIELD}={{training: {training}, step: {step}}}' (docs/books.md)"
    )


def _goes_on_from(plan: Trainings, planned: PlannedStage, training: str, folder: str) -> int:
    """The last step that a training can be gone on from with the stage's config; 0 where it cannot."""
    known = ledger.read(folder)
    state = folder if folder.endswith("/state") else storage.join(folder, _FINISHED)
    if known is None or known["pipeline"] != plan.config.name or training == planned.fingerprint:
        return 0
    steps = steps_of(state)
    old = ledger.config_of(known["periods"][-1])
    return steps[-1] if steps and not continuing.refusals(old, planned.config, steps[-1]) else 0
