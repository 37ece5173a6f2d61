"""What `replay` needs of a run: the stage that trained, what it was trained on, its checkpoints and its curves,
wherever they are. In: a plan. Out: what `stages.replay` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.pipelines import continuing
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.planned import PlannedStage
from omniloom.stages.distill.config import DistillConfig
from omniloom.stages.scorer.config import TrainScorerConfig
from omniloom.stages.tokenizer.config import Config as TokenizerConfig
from omniloom.stages.train import ledger
from omniloom.stages.train.config import Config as TrainConfig

_TRAININGS = TrainConfig | DistillConfig | TokenizerConfig | TrainScorerConfig


class _Quiet:
    """A tracker and a progress display of a training that nobody follows."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


def replay_step(plan: Plan, stage: str, step: int) -> dict[str, Any]:
    """InputError where the pipeline has no such step, or what it was trained on is not there."""
    planned = _trained(plan, stage)
    if step >= planned.config.steps:
        raise InputError(f"expected less than stages.{stage}.steps {planned.config.steps}, got {step}", field="--step")
    data = "tokens" if isinstance(planned.config, TrainConfig | DistillConfig) else "records"
    of_role = {role: plan[name].artifact for role, name in planned.inputs.items() if name in plan.graph.names}
    given = {role: artifact for role, artifact in of_role.items() if artifact}
    if data not in given:
        raise InputError(f"the {data} that it is trained on are not there; run the pipeline first", field="--step")
    for role in ("tokenizer", "model"):
        if role in planned.inputs and role not in given:
            raise InputError(f"the {role} that it starts from is not there; run the pipeline first", field="--step")
    from omniloom.infra.training import checkpoint
    from omniloom.stages.replay import Replay, replay
    from omniloom.stages.reporting import history

    state = storage.join(plan.store.work_uri(stage, planned.fingerprint), "state")
    places = [storage.join(state, "history.jsonl"), storage.join(planned.uri, "report", "history.jsonl")]
    curve: list[dict[str, Any]] = next((history.load(uri) for uri in places if storage.exists(uri)), [])
    bad = [storage.join(state, "bad_steps.json"), storage.join(planned.uri, "report", "bad_steps.json")]
    found: list[dict[str, Any]] = next((storage.load_json(uri)["found"] for uri in bad if storage.exists(uri)), [])
    kept = checkpoint.newest_facts(state)
    ranks = kept["ranks"] if kept else planned.config.workers.most
    assemble, job, state, at_most = _parts(planned)(plan, planned, given, state, step, ranks)
    return replay(Replay(assemble, job, state, step, [row for row in curve if "loss" in row], found, ranks, at_most))


def _trained(plan: Plan, stage: str) -> PlannedStage:
    """The stage; InputError where the pipeline has none of the name, or it trains nothing."""
    trained = [p.name for p in plan.stages if isinstance(p.config, _TRAININGS)]
    if stage not in trained:
        raise InputError(
            f"the pipeline has no stage {stage}, whose steps can be replayed; expected one of {', '.join(trained)}",
            field="--stage",
        )
    return plan[stage]


def _parts(planned: PlannedStage) -> Callable:
    if isinstance(planned.config, TrainScorerConfig):
        return _parts_of_scorer
    return _parts_of_tokenizer if isinstance(planned.config, TokenizerConfig) else _parts_of_train


def _parts_of_train(
    plan: Plan, planned: PlannedStage, given: Mapping[str, Artifact], state: str, step: int, ranks: int
) -> tuple[Callable, Any, str, int]:
    """What makes a rank's parts, and of what; where the checkpoints are, and the last step of them that counts."""
    from omniloom.stages.distill.stage import training_of
    from omniloom.stages.train.job import Job
    from omniloom.stages.train.replayed import parts

    config, distillation = planned.config, None
    if isinstance(config, DistillConfig):
        distillation = config.distillation
        config = training_of(config, given["model"])
    if ranks % (size := config.engine.sequence_parallel):
        raise InputError(
            f"the training ran on {ranks} workers, which {size} does not divide; give the number that it ran with",
            field=f"stages.{planned.name}.engine.sequence_parallel",
        )
    known, state, at_most = _books(plan, planned, state, step)
    corpora = continuing.corpora(plan.store, known)[:-1] if known else ()
    tokens, tokenizer = given["tokens"], given.get("tokenizer")
    books = known, (*corpora, tokens)
    job = Job(config, tokens, tokenizer, "", "", _Quiet(), _Quiet(), *books, distillation)
    return parts, job, state, at_most


def _parts_of_tokenizer(
    plan: Plan, planned: PlannedStage, given: Mapping[str, Artifact], state: str, step: int, ranks: int
) -> tuple[Callable, Any, str, int]:
    """As `_parts_of_train`."""
    from omniloom.stages.tokenizer.replayed import parts
    from omniloom.stages.tokenizer.stage import job_of

    where = "", "", _Quiet(), _Quiet()
    job = job_of(planned.config, given["records"], given.get("tokenizer"), *where, scorer=given.get("scorer"))
    return parts, job, state, step


def _parts_of_scorer(
    plan: Plan, planned: PlannedStage, given: Mapping[str, Artifact], state: str, step: int, ranks: int
) -> tuple[Callable, Any, str, int]:
    """As `_parts_of_train`."""
    from omniloom.stages.scorer.job import Job
    from omniloom.stages.scorer.replayed import parts

    words = storage.join(plan.store.work_uri(planned.name, planned.fingerprint), "state", "tokenizer.json")
    if not storage.exists(words):  # a finished training's folder of work is gone
        words = storage.join(planned.uri, "scorer", "0", "tokenizer.json")
    if not storage.exists(words):
        raise InputError("nothing of the training is there; run the pipeline first", field="--step")
    return parts, Job(planned.config, given["records"], words, "", "", _Quiet(), _Quiet()), state, step


def _books(plan: Plan, planned: PlannedStage, state: str, step: int) -> tuple[dict | None, str, int]:
    """The training's ledger, where its checkpoints are, and the last step of them that counts: of one that goes on from
    another, and has none of its own before the step, those of that other one."""
    known = next((found for uri in (state, planned.uri) if (found := ledger.read(uri))), None)
    before = continuing.asked(planned)
    if not (known and before):
        return known, state, step
    if step < before.step:
        raise InputError(
            f"expected at least {before.step}, from which on this training goes; what was before is "
            f"{before.training}'s, of whose config it is replayed",
            field="--step",
        )
    if any(before.step <= kept <= step for kept in continuing.steps_of(state)):
        return known, state, step
    earlier = continuing.earlier(plan.store, planned.name, before.training)
    if before.step not in continuing.steps_of(earlier.state):
        raise InputError(
            f"the checkpoint of step {before.step} of {before.training} is gone, without which the step is not reached",
            field="--step",
        )
    return known, earlier.state, before.step
