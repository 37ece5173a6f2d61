"""What `replay` needs of a run: the plan's stage `train`, its tokens, its checkpoints and its curves, wherever they
are. In: a plan. Out: what `stages.train.replay` gives."""

from __future__ import annotations

from typing import Any

from omniloom.infra import storage
from omniloom.infra.errors import InputError
from omniloom.pipelines import continuing
from omniloom.pipelines.plan import Plan
from omniloom.pipelines.planned import PlannedStage
from omniloom.stages.train import ledger

_STAGE = "train"


class _Quiet:
    """A tracker and a progress display of a training that nobody follows."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


def replay_step(plan: Plan, step: int) -> dict[str, Any]:
    """InputError where the pipeline has no such step, or what it was trained on is not there."""
    if _STAGE not in plan.graph.names:
        raise InputError(f"the pipeline has no stage {_STAGE}, whose steps can be replayed", field="--step")
    planned = plan[_STAGE]
    if step >= planned.config.steps:
        raise InputError(f"expected less than stages.train.steps {planned.config.steps}, got {step}", field="--step")
    tokens, tokenizer = (
        plan[planned.inputs[r]].artifact if r in planned.inputs else None for r in ("tokens", "tokenizer")
    )
    if tokens is None:
        raise InputError("the tokens that it is trained on are not there; run the pipeline first", field="--step")
    from omniloom.infra.training import checkpoint
    from omniloom.stages.reporting import history
    from omniloom.stages.train.job import Job
    from omniloom.stages.train.replay import Replay, replay

    state = storage.join(plan.store.work_uri(_STAGE, planned.fingerprint), "state")
    places = [storage.join(state, "history.jsonl"), storage.join(planned.uri, "report", "history.jsonl")]
    curve = next((history.load(uri) for uri in places if storage.exists(uri)), [])
    bad = [storage.join(state, "bad_steps.json"), storage.join(planned.uri, "report", "bad_steps.json")]
    found: list[dict[str, Any]] = next((storage.load_json(uri)["found"] for uri in bad if storage.exists(uri)), [])
    kept = checkpoint.newest_facts(state)
    ranks = kept["ranks"] if kept else planned.config.workers.most
    if ranks % (size := planned.config.engine.sequence_parallel):
        raise InputError(
            f"the training ran on {ranks} workers, which {size} does not divide; give the number that it ran with",
            field=f"stages.{_STAGE}.engine.sequence_parallel",
        )
    known, state, at_most = _books(plan, planned, state, step)
    corpora = continuing.corpora(plan.store, known)[:-1] if known else ()
    job = Job(planned.config, tokens, tokenizer, "", "", _Quiet(), _Quiet(), known, (*corpora, tokens))
    return replay(Replay(job, state, step, [row for row in curve if "loss" in row], found, ranks, at_most))


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
