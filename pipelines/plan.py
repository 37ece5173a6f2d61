"""Plan: for each stage whether it is `cached`, would `resume` or `run`, or is `blocked`, and why.

Planning reads the sources' listing, what outside files hold, and artifacts' manifests; it starts nothing and writes
nothing into the storage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact, ArtifactStore, some
from omniloom.infra.errors import InputError, within
from omniloom.infra.secrets import redact
from omniloom.pipelines import continuing, kept, predecessors
from omniloom.pipelines.checks import check_counts, misfits, refuse
from omniloom.pipelines.config import PipelineConfig, naming, placed
from omniloom.pipelines.fingerprint import digest_of_rows, fingerprint
from omniloom.pipelines.graph import KNOWN_NAMES, Graph, no_stage
from omniloom.pipelines.outside import digests, outside_contents, unreadable
from omniloom.pipelines.planned import Grown, PlannedStage
from omniloom.pipelines.reasons import change, config_changes
from omniloom.pipelines.selection import Selection
from omniloom.stages.base import Stage
from omniloom.stages.ingest.increments import growth

# Files and bytes of a listing, by the number of the source.
Offered = dict[int, tuple[int, int]]
# By a stage and its config, the listing of its sources, what the plan says of it and what each offers; each made once.
Listings = dict[tuple[str, str], tuple[Sequence[Mapping] | None, dict | None, Offered]]


@dataclass
class Plan:
    config: PipelineConfig
    store: ArtifactStore
    stages: list[PlannedStage]
    selection: Selection
    graph: Graph
    selected: set[str]
    done: set[str] = field(default_factory=set)  # executed by this run
    contents: dict[str, dict] = field(default_factory=dict)  # of outside paths, each read once
    listings: Listings = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # of what the corpus holds too little, of what might go on

    def completed(self, name: str, artifact: Artifact) -> None:
        """Note what a stage of this run has made, and judge again the stages that read it: where it came out as an
        older artifact did, what was made from that one is up to date.

        Sources and outside files that change in mid-run belong to the next run.
        """
        self.done.add(name)
        self[name].artifact = self[name].expected = artifact
        self[name].status, self[name].reason = "cached", "made by this run"
        if self[name].stage.makes == "records":
            self.check_counts()
        for planned in self.stages:
            if planned.name in self.graph.descendants(name) and planned.name not in self.config.pins:
                _address(planned, self)
                _judge(planned, self)

    def inputs(self, planned: PlannedStage) -> dict[str, PlannedStage]:
        """The stages that a stage reads from, by their names."""
        return {name: self[name] for name in planned.inputs.values()}

    def made_from(self, planned: PlannedStage) -> dict[str, str] | None:
        """The digests of a stage's inputs by the stages' names; None where one is not made yet."""
        found = {}
        for name in planned.inputs.values():
            artifact = self[name].artifact
            if artifact is None or self[name].status != "cached":
                return None
            found[name] = artifact.digest
        return found

    def check(self) -> None:
        """InputError where the config tells that a stage which would run cannot, whether it is selected or not."""
        refuse([*misfits(self.config, self._settled()), *self.unreadable(), *continuing.misfits(self.trainings)])
        self.check_counts()

    def unreadable(self) -> Iterator[InputError]:
        """Facts about the outside files of the stages so far."""
        for planned in self.stages:
            for error in unreadable(planned.outside) if planned.name not in self.config.pins else ():
                yield placed(self.config, InputError(error.message, field=f"stages.{planned.name}.{error.field}"))

    def check_counts(self) -> None:
        """InputError where what is known of the corpus tells so; what it only warns of goes into `warnings`."""
        counts = {
            p.name: p.artifact.metrics
            for p in self.stages
            if p.artifact and p.stage.makes == "records" and p.status == "cached"
        }
        self.warnings = [*check_counts(self.config, counts, self._settled()), *continuing.hints(self.trainings)]

    def _settled(self) -> set[str]:
        return {planned.name for planned in self.stages if planned.status == "cached"}

    def examine_inputs(self) -> list[str]:
        """Read what is cached and would be read by a stage that runs, as far as this machine has not read it since it
        was written; where something is damaged or gone the plan is made again. Gives in words what is."""
        told: list[str] = []
        while found := self._unusable():
            told += found
            for planned in self.stages:
                (_judge_pinned if planned.name in self.config.pins else _judge)(planned, self)
        return told

    def _unusable(self) -> list[str]:
        """In words, which cached inputs of stages that run cannot be read."""
        read = {name for planned in self.to_execute for name in planned.inputs.values()}
        found = []
        for name in self.graph.names:
            artifact = self[name].artifact if name in read and self[name].status == "cached" else None
            if artifact is None:
                continue
            if self.store.find(artifact.stage, artifact.fingerprint) is None:
                self[name].artifact = None
                found.append(f"{name} is gone from {self[name].uri}")
            elif bad := self.store.examine(artifact, remembered=True):
                found.append(f"{name} is damaged: {some(bad)} in {self[name].uri}")
        return found

    @property
    def artifacts(self) -> dict[str, str]:
        """By stage, the fingerprint of what is used or made."""
        return {planned.name: planned.fingerprint for planned in self.stages}

    @property
    def trainings(self) -> continuing.Trainings:
        """What `continuing` looks at."""
        return continuing.Trainings(self.config, self.store, self.stages)

    def last(self, role: str) -> PlannedStage | None:
        """The last stage that makes the role."""
        name = self.graph.nearest(role)
        return self[name] if name else None

    def __getitem__(self, name: str) -> PlannedStage:
        return next(planned for planned in self.stages if planned.name == name)

    def stage(self, name: str) -> PlannedStage:
        """As a user names one; InputError where the pipeline has no such stage."""
        if name not in self.graph.names:
            here = f"{name} is not configured in this pipeline, which has {', '.join(self.graph.names)}"
            raise InputError(here if name in KNOWN_NAMES else no_stage(name), field="STAGE")
        return self[name]

    @property
    def to_execute(self) -> list[PlannedStage]:
        return [planned for planned in self.stages if planned.executes]

    @property
    def blocked(self) -> list[PlannedStage]:
        return [p for p in self.stages if p.status == "blocked" and p.name in self.selected]

    def to_dict(self) -> dict:
        return redact(
            {
                "pipeline": self.config.name,
                "storage": self.config.storage,
                "warnings": self.warnings,
                "stages": [planned.to_dict() for planned in self.stages],
            }
        )


def make_plan(config: PipelineConfig, selection: Selection = Selection(), beside: Plan | None = None) -> Plan:
    """The plan for a config and a selection. Raises InputError where sources, storage or pins cannot be used, and where
    stages do not fit each other, their outside files or the corpus. What a plan `beside` has looked up of sources and
    outside files is not looked up again."""
    with naming(config):
        return _make_plan(config, selection, beside)


def _make_plan(config: PipelineConfig, selection: Selection, beside: Plan | None) -> Plan:
    store = ArtifactStore(config.storage)
    try:
        storage.exists(config.storage)
    except Exception as error:  # each filesystem has its own for unknown, unreachable, unauthorised
        message = f"{config.storage} cannot be read: {type(error).__name__}: {error}"
        raise InputError(message, field="storage") from error
    pipeline = config.graph
    selected = selection.stages(pipeline)
    for name in config.pins:
        if name == selection.only or name in selection.force:
            raise InputError(f"{name} is pinned and cannot run", field=f"pins.{name}")
    plan = Plan(config, store, [], selection, pipeline, selected)
    if beside:
        plan.contents, plan.listings = beside.contents, beside.listings
    errors: list[InputError] = []
    unknown: set[str] = set()
    for stage in pipeline.stages:
        try:
            planned = _look(stage, plan)
        except InputError as error:  # then nothing is known of what comes after it
            errors += error.each()
            unknown.add(stage.name)
            continue
        if errors:
            plan.stages.append(planned)
            continue
        _address(planned, plan)
        (_judge_pinned if planned.name in config.pins else _judge)(planned, plan)
        plan.stages.append(planned)
    if errors:
        refuse([*(placed(config, error) for error in errors), *misfits(config, unknown=unknown), *plan.unreadable()])
    plan.check()
    return plan


def _look(stage: Stage, plan: Plan) -> PlannedStage:
    """The stage with what lies outside: its sources, and the files that its config names."""
    config, files, sources, outside = getattr(plan.config.stages, stage.name), None, None, {}
    offered: Mapping[int, tuple[int, int]] = {}
    if config is not None and not plan.graph.missing(stage):
        key = stage.name, repr(config)
        if key not in plan.listings:
            found = _listing(stage, config)
            plan.listings[key] = found, *(_facts(found) if found else (None, {}))
        (files, sources, offered), outside = plan.listings[key], outside_contents(config, plan.contents)
    inputs = plan.graph.inputs[stage.name]
    return PlannedStage(stage, config, inputs, "", "", None, sources, outside, listing=files, offered=offered)


def _address(planned: PlannedStage, plan: Plan) -> None:
    """Find the stage's artifact by its config, by what lies outside and by what is known of its inputs now."""
    pins = plan.config.pins
    if planned.kept:
        planned.config = getattr(plan.config.stages, planned.name)
        planned.outside, planned.kept = outside_contents(planned.config, plan.contents), None
    _find(planned, plan)
    if planned.config is not None and planned.name not in pins:
        kept.settle(planned, plan)
        if planned.kept and planned.artifact is None:
            _find(planned, plan)


def _find(planned: PlannedStage, plan: Plan) -> None:
    pins = plan.config.pins
    if planned.config is not None and not plan.graph.missing(planned.stage):
        made_by = _fingerprint(planned, {name: plan[name].identity for name in planned.inputs.values()})
    else:  # only what is pinned may lack a config or an input
        made_by = pins[planned.name]
    planned.fingerprint = pins.get(planned.name) or made_by
    planned.uri = plan.store.artifact_uri(planned.name, planned.fingerprint)
    planned.artifact = plan.store.find(planned.name, planned.fingerprint)
    planned.drift = made_by != planned.fingerprint


def _fingerprint(planned: PlannedStage, made_from: dict[str, str]) -> str:
    sources = planned.sources["digest"] if planned.sources else None
    version = planned.stage.module.VERSION
    made_from = made_from | getattr(planned.config, "enters_fingerprint", {})
    return fingerprint(planned.name, version, planned.config, made_from, sources, digests(planned.outside))


def _facts(files: Sequence[Mapping]) -> tuple[dict, Offered]:
    """What the plan says of a listing, of which there may be millions of rows, and what each source offers."""
    counts: Counter[int] = Counter()
    sizes: Counter[int] = Counter()

    def rows() -> Iterator[Mapping]:
        for file in files:
            number = file.get("source", 0)
            counts[number] += 1
            sizes[number] += file.get("size") or 0
            yield file

    digest = digest_of_rows(rows())
    return {"digest": digest, "files": len(files), "bytes": sizes.total()}, {n: (counts[n], sizes[n]) for n in counts}


def _listing(stage: Stage, config: Any) -> Sequence[Mapping] | None:
    listing = getattr(stage.module, "listing", None)
    if listing is None:
        return None
    with within(f"stages.{stage.name}"):
        return listing(config)


def _judge(planned: PlannedStage, plan: Plan) -> None:
    again = None if planned.name in plan.done else plan.selection.again(planned.name, plan.selected)
    previous = plan.store.last_used(plan.config.name, planned.name)
    planned.known = known = planned.artifact or previous
    planned.last_seconds = known.manifest["times"]["seconds"] if known else None
    planned.grown = _grown(planned, plan, previous)
    stale = _stale(planned, plan)
    planned.expected = planned.artifact
    if planned.artifact and not stale and not again:
        own = planned.kept and planned.stage.makes == "tokenizer"
        planned.status = "cached"
        planned.reason = (f"kept; {planned.kept.why}" if own and planned.kept else "up to date") + _drift_note(
            planned, plan
        )
        return
    reason = again or stale or change(planned, previous, plan.inputs(planned))
    if planned.kept:
        what = "the text tokenizer" if planned.stage.makes == "tokens" else "it"
        reason += f"; {what} {'stays' if planned.kept.stays else 'is trained again'}: {planned.kept.why}"
    if not again and not planned.artifact:
        stays = _stays(planned, plan)
        planned.expected = stays or (previous if previous and not config_changes(planned, previous) else None)
        if stays:
            unsure = [name for name in planned.inputs.values() if plan[name].status != "cached"]
            reason += f"; stays if {' and '.join(unsure)} come{'s' * (len(unsure) == 1)} out the same"
    reason += _drift_note(planned, plan)
    if planned.name not in plan.selected:
        planned.status, planned.reason = "blocked", f"not selected; {reason}"
        return
    missing = [name for name in planned.inputs.values() if plan[name].status == "blocked"]
    if missing:
        planned.status = "blocked"
        # Bringing the last of them up to date brings the others along.
        last = max(missing, key=plan.graph.names.index)
        planned.reason = f"nothing usable from {' and '.join(missing)}; first run --until {last}"
    elif again != "forced" and plan.store.has_work(planned.name, planned.fingerprint, plan.made_from(planned)):
        planned.status, planned.reason = "resume", f"was interrupted; {reason}"
    else:
        planned.status, planned.reason = "run", reason


def _grown(planned: PlannedStage, plan: Plan, previous: Artifact | None) -> Grown | None:
    """What has become of the sources since the artifact of the last run, where the next is built on that."""
    if planned.artifact or not planned.listing or previous is None or not predecessors.fits(planned, previous, {}):
        return None
    earlier = plan.store.find(planned.name, previous.fingerprint)
    if earlier is None or (old := growth.known_files(earlier)) is None:
        return None
    return Grown(earlier, growth.compare(old, growth.file_table(planned.listing)))


def _judge_pinned(planned: PlannedStage, plan: Plan) -> None:
    if planned.artifact is None:
        raise InputError(
            f"no artifact {planned.fingerprint!r} of {planned.name} in {plan.config.storage}",
            field=f"pins.{planned.name}",
        )
    damaged = _damaged(planned.artifact, plan)
    planned.status, planned.last_seconds = "cached", planned.artifact.manifest["times"]["seconds"]
    planned.reason = "pinned"
    if planned.drift:
        planned.reason += f"; drift: {change(planned, planned.artifact, plan.inputs(planned))}"
    planned.reason += _drift_note(planned, plan)
    if damaged:
        planned.status, planned.reason = "blocked", f"{planned.reason}; {damaged}"


def _stale(planned: PlannedStage, plan: Plan) -> str | None:
    """Why a published artifact cannot be used as it is."""
    if planned.artifact is None:
        return None
    if damaged := _damaged(planned.artifact, plan):
        return damaged
    for name, made_from in planned.artifact.manifest["input_digests"].items():
        if planned.kept and planned.artifact is planned.kept.earlier and plan[name].stage.makes == "records":
            continue
        current = plan[name].artifact
        if current and current.digest != made_from:
            return f"input changed: {name} (made again, with other content)"
    return None


def _stays(planned: PlannedStage, plan: Plan) -> Artifact | None:
    """The artifact that is up to date if all that runs before it comes out as it did; None where there is none."""
    expected = {name: artifact for name in planned.inputs.values() if (artifact := plan[name].expected)}
    if planned.config is None or len(expected) < len(planned.inputs):  # each role's stage is another
        return None
    made_by = _fingerprint(planned, {name: artifact.identity for name, artifact in expected.items()})
    found = plan.store.find(planned.name, made_by)
    made_from = {name: artifact.digest for name, artifact in expected.items()}
    if found is None or found.manifest["input_digests"] != made_from or plan.store.damage(found):
        return None
    return found


def _damaged(artifact: Artifact, plan: Plan) -> str | None:
    paths = plan.store.damage(artifact)
    return f"damaged: {some(paths)}" if paths else None


def _drift_note(planned: PlannedStage, plan: Plan) -> str:
    drifting = [p.name for p in plan.stages if p.drift and p.name in plan.graph.ancestors(planned.name)]
    return f"; drift through pinned {', '.join(drifting)}" if drifting else ""
