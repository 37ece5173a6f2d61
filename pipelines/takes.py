"""What a stage that would run takes: seconds, units a second, memory, checkpoints, GPU-hours. In: a plan. Out: figures.

The rate is what the stage reached when it last ran in this storage (`units_per_second` of a training's metrics), times
what one unit costs more or less now: operations on GPUs, and on CPUs a core's seconds, which small models spend on
other things too. Without such a run it is what was measured on this machine, scaled so (`pipelines.measuring`); and
without that, a training on devices whose peak is known (`workers.peak_tflops`, or in bf16 `workers.accelerator_type`)
is taken to use 40% of it. Torch is not imported, and nothing is read but manifests that the plan has found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from omniloom.infra import cluster, gpus
from omniloom.infra.artifacts import Artifact
from omniloom.infra.nodes import Node, gib
from omniloom.infra.training.config import WorkersConfig
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.flops import token_flops
from omniloom.pipelines import fitting, measuring, room
from omniloom.pipelines.checks import with_upstream
from omniloom.pipelines.predecessors import builds_on
from omniloom.pipelines.prices import PricesConfig
from omniloom.stages.tokenizer.config import Config as TokenizerConfig
from omniloom.stages.train.config import Config as TrainConfig
from omniloom.stages.train.config import expected_config, parameters_of
from omniloom.stages.train.cost import token_cost
from omniloom.stages.train.memory import worker_memory

if TYPE_CHECKING:
    from omniloom.pipelines.plan import Plan
    from omniloom.pipelines.planned import PlannedStage

# What the stage reaches of a GPU's peak where nothing was measured: rows of 8,192, a billion parameters, bf16.
_UTILIZATION = 0.4
# Bytes a second that a GPU's memory is copied to the host's at (PCIe 4 with 16 lanes), for which a training waits.
_COPIED = 20e9
_NUMBERS = 3  # a trained number is kept as weight and two moments
_Settings = TypeVar("_Settings", bound=BaseModel)


@dataclass(frozen=True)
class Takes:
    """None where it is not known. `basis` says in words what the rate is from. A `unit` is a token, an image or
    another thing that the stage counts."""

    seconds: float | None = None
    unit: str = ""
    units_per_second: float | None = None
    checkpoint_bytes: int | None = None
    checkpoint_pause_seconds: float | None = None
    gpu_hours: float | None = None  # of the stage's body and its workers
    cpu_hours: float | None = None
    cost: float | None = None  # by the config's `prices`
    currency: str = ""
    basis: str = ""
    worker_memory_bytes: dict[str, int] | None = None  # at the moment that takes most, by what takes it
    fit: fitting.Fit | None = None  # a worker's, on the kind of GPU that it would have

    def to_dict(self) -> dict[str, Any]:
        found = {name: value for name, value in asdict(self).items() if value not in (None, "") and name != "fit"}
        return found | (self.fit.to_dict() if self.fit else {})


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
    if isinstance(planned.config, TrainConfig):
        nodes = nodes or cluster.with_autoscaling((), plan.config.cluster)
        gpu = room.accelerator_of(planned.config.workers, nodes)
        return _train(planned, upstream, cluster.starts_here(plan.config.cluster), gpu)
    if isinstance(planned.config, TokenizerConfig):
        return _tokenizer(planned, cluster.starts_here(plan.config.cluster))
    return _body(planned, plan)


def _train(planned: PlannedStage, upstream: Mapping[str, Any], here: bool, gpu: str | None) -> Takes:
    config: TrainConfig = planned.config
    tokens, tokenizer = upstream.get("tokens"), upstream.get("tokenizer")
    if tokens is None:
        return Takes()
    model = expected_config(config, tokens, tokenizer and tokenizer.model)
    units = config.steps * config.batch_rows * config.packing.length
    fixed = _checkpoint(parameters_of(config, model)[0], config.engine.ema_decay, config.workers)
    fixed["worker_memory_bytes"] = worker_memory(config, model)
    if gpu:
        fixed["fit"] = fitting.of_train(config, model, gpu)
    if before := _earlier(planned):
        useful = units * (1 - before.metrics.get("padding", 0.0))
        if cost := _cost_then(before, config, model):
            return _timed(useful, before, token_cost(config, model) / cost, config.workers, "tokens", fixed)
    if here and (measured := measuring.known(config)):
        rate = config.workers.most / (measured.factor * token_cost(config, model))
        return _with_hours(units / rate, rate, config.workers, "tokens", f"as measured here on {measured.on}", fixed)
    if peak := config.workers.peak_tflops or (config.engine.precision == "bf16" and gpus.known(gpu).tflops):
        flops = token_flops(model, config.packing.length, config.adapter)
        rate = _UTILIZATION * peak * 1e12 * config.workers.most / flops
        return _with_hours(units / rate, rate, config.workers, "tokens", f"{_UTILIZATION:.0%} of the peak", fixed)
    return Takes(**fixed)


def _tokenizer(planned: PlannedStage, here: bool) -> Takes:
    """By the run before it, where that trained the same model on pictures of the same sizes; else as measured."""
    config: TokenizerConfig = planned.config
    before = _earlier(planned)
    then = _as(TokenizerConfig, before) if before and before.metrics.get("steps") else None
    if before is None or then is None or not _on_such(before, config.workers) or _trains(then) != _trains(config):
        return _tokenizer_as_measured(config) if here else Takes()
    units = before.metrics["units"] / before.metrics["steps"] * config.steps
    checkpoint = _checkpoint(before.metrics.get("parameters", 0), config.engine.ema_decay, config.workers)
    return _timed(units, before, 1.0, config.workers, "images", checkpoint)


def _tokenizer_as_measured(config: TokenizerConfig) -> Takes:
    if (measured := measuring.known_tokenizer(config)) is None:
        return Takes()
    images = measuring.images_of_a_step(config)
    return _with_hours(
        config.steps * measured.seconds,
        images / measured.seconds,
        config.workers,
        "images",
        f"as measured here on {measured.on}",
        _checkpoint(measured.trained, config.engine.ema_decay, config.workers),
    )


def _body(planned: PlannedStage, plan: Plan) -> Takes:
    """A stage that reads a corpus takes as much longer as that has become larger; one that builds on what it made
    before takes what the new part of it does."""
    before = _earlier(planned)
    if before is None:
        return Takes()
    size = 1.0
    if (grown := next((p.grown for p in plan.stages if p.grown), None)) and builds_on(planned) is not None:
        size = min(1.0, grown.files.bytes / max(1, _bytes_read(grown.earlier)))
    elif planned.sources and (was := (before.manifest.get("sources") or {}).get("bytes")):
        size = planned.sources["bytes"] / was
    seconds, needs = before.manifest["times"]["seconds"] * size, planned.stage.needs(planned.config)
    hours = _hours(seconds, needs.cpus + needs.worker_cpus, needs.gpus + needs.worker_gpus)
    return Takes(seconds=seconds, basis=_when(before), **hours)


def _hours(seconds: float, cpus: float, gpus: float) -> dict[str, Any]:
    return {f"{kind}_hours": n * seconds / 3600 if n else None for kind, n in (("cpu", cpus), ("gpu", gpus))}


def _bytes_read(earlier: Artifact) -> int:
    """Of the files that an ingest has read itself, which may have been few; of one from before it was kept, of all."""
    return earlier.metrics.get("bytes_read") or (earlier.manifest.get("sources") or {}).get("bytes") or 0


def _earlier(planned: PlannedStage) -> Artifact | None:
    """What the stage made before, if it says how long that took."""
    before = planned.known
    if before is None or not before.manifest["times"].get("seconds"):
        return None
    trained = isinstance(planned.config, TrainConfig | TokenizerConfig)
    return before if not trained or before.metrics.get("units") else None


def _cost_then(before: Artifact, config: TrainConfig, model: UnifiedConfig) -> float | None:
    """What a token cost in the run before, with the sizes that its inputs have now; None where it ran on another kind
    of device or in another precision, or from another start, whose sizes are not known."""
    then = _as(TrainConfig, before)
    if then is None or not _on_such(before, config.workers):
        return None
    if then.engine.precision != config.engine.precision:
        return None
    count = before.metrics.get("workers", config.workers.most)
    then = then.model_copy(update={"workers": config.workers.model_copy(update={"count": int(count)})})
    if then.init_from or config.init_from:
        return token_cost(then, model) if then.init_from == config.init_from else None
    sizes = {name: getattr(model, name) for name in ("vocab_size", "latent_dim", "pixel_dim", "codebook_size")}
    return token_cost(then, UnifiedConfig(**then.model.model_dump(), **sizes))


def _as(kind: type[_Settings], before: Artifact) -> _Settings | None:
    """What made the artifact, as far as it was kept; None where that was a version with other fields."""
    try:
        return kind.model_validate(before.manifest["config"])
    except ValueError:
        return None


def _trains(config: TokenizerConfig) -> tuple:
    return config.model, config.discriminator, config.data, config.engine.precision


def _timed(
    units: float, before: Artifact, cost: float, workers: WorkersConfig, unit: str, fixed: dict[str, Any]
) -> Takes:
    """At the rate of the run before, for as many workers as there are now; start and end take what they took."""
    metrics = before.metrics
    rate = _rate(before) / cost * workers.most / metrics.get("workers", workers.most)
    around = max(0.0, before.manifest["times"]["seconds"] - metrics["seconds"])
    return _with_hours(around + units / rate, rate, workers, unit, _when(before), fixed)


def _rate(before: Artifact) -> float:
    """Units a second; of a run from before it was kept, of the whole training."""
    metrics = before.metrics
    return metrics.get("units_per_second") or metrics["units"] / metrics["seconds"]


def _on_such(before: Artifact, workers: WorkersConfig) -> bool:
    """Whether the run before had GPUs as these workers have."""
    return bool(before.metrics.get("gpus", workers.gpus)) == bool(workers.gpus)


def _with_hours(
    seconds: float, rate: float, workers: WorkersConfig, unit: str, basis: str, fixed: dict[str, Any]
) -> Takes:
    hours = _hours(seconds, workers.most * workers.cpus, workers.most * workers.gpus)
    return Takes(seconds, unit, rate, basis=basis, **hours, **fixed)


def _checkpoint(parameters: int, ema: float, workers: WorkersConfig) -> dict[str, Any]:
    """Bytes of all workers' parts together, and how long a training on GPUs waits for the copy of one."""
    size = 4 * parameters * (_NUMBERS + bool(ema))
    pause = size / workers.most / _COPIED if workers.gpus else None
    return {"checkpoint_bytes": size, "checkpoint_pause_seconds": pause}


def _when(before: Artifact) -> str:
    return f"as {before.fingerprint[:12]} ran on {before.manifest['times']['ended'][:10]}"


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
