"""What a training takes: by its last run, by what was measured on this machine, or by the peak of its GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniloom.infra import gpus
from omniloom.infra.artifacts import Artifact
from omniloom.models.unified.config import UnifiedConfig
from omniloom.pipelines import fitting, measuring
from omniloom.pipelines.planned import PlannedStage
from omniloom.pipelines.predicting import earlier, figures
from omniloom.pipelines.predicting.figures import Takes
from omniloom.pipelines.trainings import Training, UnifiedTraining, training_of
from omniloom.stages.tokenizer.config import Config as TokenizerConfig
from omniloom.stages.train.config import TrainConfig

# What the stage reaches of a GPU's peak where nothing was measured: rows of 8,192, a billion parameters, bf16.
_UTILIZATION = 0.4


def of_training(
    planned: PlannedStage, training: Training, upstream: Mapping[str, Any], here: bool, gpu: str | None
) -> Takes:
    """`here`: whether it runs on this machine; `gpu`: Ray's name of the GPU that a worker would have."""
    config = training.config
    units = config.steps * training.units
    fixed = figures.checkpoint(training.parameters[0], config.engine.ema_decay, config.workers)
    fixed["worker_memory_bytes"] = training.memory
    if gpu:
        fixed["fit"] = fitting.of_training(training, gpu)
    if not units:
        return Takes(worker_memory_bytes=training.memory)
    if before := earlier.trained(planned):
        useful = units * (1 - before.metrics.get("padding", 0.0))
        if cost := _cost_then(before, training, planned.config, upstream):
            return earlier.timed(useful, before, training.cost / cost, config.workers, training.unit, fixed)
    if here and (measured := measuring.known(training)):
        rate = config.workers.most / (measured.factor * training.cost)
        basis = f"as measured here on {measured.on}"
        return figures.of_workers(units / rate, rate, config.workers, training.unit, basis, fixed)
    if peak := config.workers.peak_tflops or (config.engine.precision == "bf16" and gpus.known(gpu).tflops):
        rate = _UTILIZATION * peak * 1e12 * config.workers.most / training.flops
        basis = f"{_UTILIZATION:.0%} of the peak"
        return figures.of_workers(units / rate, rate, config.workers, training.unit, basis, fixed)
    return Takes(**fixed)


def of_tokenizer(planned: PlannedStage, here: bool) -> Takes:
    """By the run before it, where that trained the same model on pictures of the same sizes; else as measured."""
    config: TokenizerConfig = planned.config
    before = earlier.trained(planned)
    then = earlier.config_of(TokenizerConfig, before) if before and before.metrics.get("steps") else None
    same = then and before and earlier.on_such(before, config.workers) and _trains(then) == _trains(config)
    if before is None or not same:
        return _tokenizer_as_measured(config) if here else Takes()
    units = before.metrics["units"] / before.metrics["steps"] * config.steps
    checkpoint = figures.checkpoint(before.metrics.get("parameters", 0), config.engine.ema_decay, config.workers)
    return earlier.timed(units, before, 1.0, config.workers, "images", checkpoint)


def _tokenizer_as_measured(config: TokenizerConfig) -> Takes:
    if (measured := measuring.known_tokenizer(config)) is None:
        return Takes()
    images = measuring.images_of_a_step(config)
    return figures.of_workers(
        config.steps * measured.seconds,
        images / measured.seconds,
        config.workers,
        "images",
        f"as measured here on {measured.on}",
        figures.checkpoint(measured.trained, config.engine.ema_decay, config.workers),
    )


def _trains(config: TokenizerConfig) -> tuple:
    return config.model, config.discriminator, config.data, config.engine.precision


def _cost_then(before: Artifact, now: Training, own: Any, upstream: Mapping[str, Any]) -> float | None:
    """What a unit cost in the run before, with the sizes that its inputs have now; None where it ran on another kind
    of device or in another precision, or from another start, whose sizes are not known."""
    workers, then = now.config.workers, earlier.config_of(type(own), before)
    if then is None or not earlier.on_such(before, workers) or then.engine.precision != now.config.engine.precision:
        return None
    count = int(before.metrics.get("workers", workers.most))
    then = then.model_copy(update={"workers": workers.model_copy(update={"count": count})})
    if not isinstance(then, TrainConfig):
        started = getattr(then, "pretrained", None) == getattr(own, "pretrained", None)
        known = training_of(then, upstream) if started else None
        return known.cost if known else None
    assert isinstance(now, UnifiedTraining)
    if then.init_from or own.init_from:
        return UnifiedTraining(then, now.model).cost if then.init_from == own.init_from else None
    sizes = {name: getattr(now.model, name) for name in ("vocab_size", "latent_dim", "pixel_dim", "codebook_size")}
    return UnifiedTraining(then, UnifiedConfig(**then.model.model_dump(), **sizes)).cost
