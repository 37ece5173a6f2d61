"""What a stage that would run takes: seconds, units a second, memory, checkpoints, GPU-hours. In: a plan. Out: figures.

The rate is what the stage reached when it last ran in this storage (`units_per_second` of a training's metrics), times
what one unit costs more or less now: operations on GPUs, and on CPUs a core's seconds, which small models spend on
other things too. Without such a run it is what was measured on this machine, scaled so (`pipelines.measuring`); and
without that, a training on devices whose peak is known (`workers.peak_tflops`, or in bf16 `workers.accelerator_type`)
is taken to use 40% of it. Torch is not imported, and nothing is read but manifests that the plan has found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from omniloom.infra import cluster
from omniloom.infra.artifacts import Artifact
from omniloom.infra.nodes import Node, gib
from omniloom.pipelines import room
from omniloom.pipelines.checks import with_upstream
from omniloom.pipelines.predecessors import builds_on
from omniloom.pipelines.predicting import data, earlier, figures, training
from omniloom.pipelines.predicting.figures import Takes
from omniloom.pipelines.prices import PricesConfig
from omniloom.pipelines.trainings import is_training, training_of
from omniloom.stages.ingest.config import IngestConfig
from omniloom.stages.pretokenize.config import PretokenizeConfig
from omniloom.stages.tokenizer.config import Config as TokenizerConfig

if TYPE_CHECKING:
    from omniloom.pipelines.plan import Plan
    from omniloom.pipelines.planned import PlannedStage

__all__ = ["Takes", "described", "duration", "lines", "of", "total", "unknown"]


def of(plan: Plan, nodes: Sequence[Node] = ()) -> dict[str, Takes]:
    """Of the stages that would run and of which something is known. `nodes`: those of the cluster, where it was
    asked."""
    upstream = {stage.name: known for stage, _, known in with_upstream(plan.config)}
    found = {}
    for planned in plan.to_execute:
        if planned.config is not None:
            takes = _priced(_of(planned, upstream[planned.name], plan, nodes), plan.config.prices)
            if takes.to_dict():
                found[planned.name] = takes
    return found


def _priced(takes: Takes, prices: PricesConfig) -> Takes:
    if (cost := prices.cost(takes.cpu_hours, takes.gpu_hours)) is None:
        return takes
    return replace(takes, cost=cost, currency=prices.currency)


def _of(planned: PlannedStage, upstream: Mapping[str, Any], plan: Plan, nodes: Sequence[Node]) -> Takes:
    here = cluster.starts_here(plan.config.cluster)
    if isinstance(planned.config, TokenizerConfig):
        return training.of_tokenizer(planned, here)
    if known := training_of(planned.config, upstream):
        nodes = nodes or cluster.with_autoscaling((), plan.config.cluster)
        gpu = room.accelerator_of(known.config.workers, nodes)
        return training.of_training(planned, known, upstream, here, gpu)
    if is_training(planned.config):  # of tokens whose sizes are not known
        return Takes()
    if earlier.ran(planned) or not here:
        return _body(planned, plan)
    if isinstance(planned.config, IngestConfig):
        return data.of_ingest(planned, plan)
    if isinstance(planned.config, PretokenizeConfig):
        return data.of_pretokenize(planned, plan, upstream)
    return Takes()


def _body(planned: PlannedStage, plan: Plan) -> Takes:
    """A stage that reads a corpus takes as much longer as that has become larger; one that builds on what it made
    before takes what the new part of it does."""
    before = earlier.ran(planned)
    if before is None:
        return Takes()
    size = 1.0
    if (grown := next((p.grown for p in plan.stages if p.grown), None)) and builds_on(planned) is not None:
        size = min(1.0, grown.files.bytes / max(1, _bytes_read(grown.earlier)))
    elif planned.sources and (was := (before.manifest.get("sources") or {}).get("bytes")):
        size = planned.sources["bytes"] / was
    seconds, needs = before.manifest["times"]["seconds"] * size, planned.stage.needs(planned.config)
    hours = figures.hours(seconds, needs.cpus + needs.worker_cpus, needs.gpus + needs.worker_gpus)
    return Takes(seconds=seconds, basis=earlier.when(before), **hours)


def _bytes_read(earlier: Artifact) -> int:
    """Of the files that an ingest has read itself, which may have been few; of one from before it was kept, of all."""
    return earlier.metrics.get("bytes_read") or (earlier.manifest.get("sources") or {}).get("bytes") or 0


def described(plan: Plan, found: Mapping[str, Takes]) -> dict:
    """The plan with what its stages take, as `plan --json` prints it."""
    document = plan.to_dict()
    for stage in document["stages"]:
        if stage["name"] in found:
            stage["predicted"] = found[stage["name"]].to_dict()
    return document


def lines(found: Mapping[str, Takes]) -> Iterator[str]:
    """What each training takes, and all together, in words."""
    for name, f in found.items():
        parts = [f"{f.units_per_second:,.0f} {f.unit} a second ({f.basis})"] if f.units_per_second else []
        if f.fit:
            parts.append(f"a worker {f.fit}")
        elif f.worker_memory_bytes:
            parts.append(f"{gib(sum(f.worker_memory_bytes.values()))} a worker")
        if f.checkpoint_bytes:
            parts.append(f"checkpoints of {gib(f.checkpoint_bytes)}")
        if f.checkpoint_pause_seconds:
            parts[-1] += f", each a pause of {f.checkpoint_pause_seconds:.1f} s"
        if f.cost is not None:
            parts.append(f"{f.cost:,.2f} {f.currency}")
        if parts:
            yield f"{name}: " + "; ".join(parts)
    yield from total(found.values())


def unknown(plan: Plan, found: Mapping[str, Takes]) -> Iterator[str]:
    """Of which stages that would run it is not known how long they take, in words, and how it would be."""
    names = [p.name for p in plan.to_execute if p.name not in found or found[p.name].seconds is None]
    if not names:
        return
    said = f"not known yet: {', '.join(names)}; a stage's seconds are known once it ran here"
    measured = [p.name for p in plan.to_execute if p.name in names and _measurable(p.config)]
    here = cluster.starts_here(plan.config.cluster)
    yield f"{said}, or of {', '.join(measured)} by omniloom doctor CONFIG --measure" if measured and here else said


def _measurable(config: Any) -> bool:
    return isinstance(config, IngestConfig | PretokenizeConfig | TokenizerConfig) or is_training(config)


def total(found: Collection[Takes]) -> Iterator[str]:
    """What all take together, in words; nothing where of none it is known how long it takes."""
    if seconds := sum(f.seconds or 0.0 for f in found):
        hours = {kind: sum(getattr(f, f"{kind}_hours") or 0.0 for f in found) for kind in ("gpu", "cpu")}
        spent = [f"{value:.3g} {kind.upper()}-hours" for kind, value in hours.items() if value]
        if costs := [(f.cost, f.currency) for f in found if f.cost is not None]:
            spent.append(f"{sum(cost for cost, _ in costs):,.2f} {costs[0][1]}")
        yield ", ".join([f"predicted: {duration(seconds)}", *spent])


def duration(seconds: float) -> str:
    """`40 s`, `3 min`, `5.2 h`, `12 d`."""
    for size, name in ((86400 * 2, "d"), (5400, "h"), (90, "min")):
        if seconds >= size:
            return f"{seconds / {'d': 86400, 'h': 3600, 'min': 60}[name]:.3g} {name}"
    return f"{seconds:.0f} s"
