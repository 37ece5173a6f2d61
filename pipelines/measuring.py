"""What this machine's trainings take, measured: kept in the machine's cache, where `plan` finds it. In: the config of a
pipeline. Out: seconds of steps.

The formulas by which `plan` scales a run (`pipelines.takes`) have one unknown factor on a machine, which a few steps
at one size tell for all others: seconds that are measured, over those that are calculated. There is one by kind of
training, device, precision and number of CPUs of a worker; a kind that was not measured takes that of `train`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omniloom.infra import cluster, storage
from omniloom.infra.errors import InputError
from omniloom.infra.training.config import WorkersConfig
from omniloom.infra.training.heap import KEEPS_FREED
from omniloom.pipelines import sizing
from omniloom.pipelines.checks import with_upstream
from omniloom.pipelines.config import PipelineConfig
from omniloom.pipelines.trainings import ScorerTraining, Training, step_cost, training_of
from omniloom.stages.tokenizer.config import TokenizerStageConfig as TokenizerConfig
from omniloom.stages.tokenizer.config import is_warm_up


@dataclass(frozen=True)
class Measured:
    """factor: seconds a unit of what the formulas calculate; on: the day."""

    factor: float
    on: str


def known(training: Training) -> Measured | None:
    """What was measured for such workers, of this kind of training or else of `train`; None where nothing was."""
    for kind in (kind_of(training), "train"):
        with suppress(OSError, ValueError, TypeError):
            return Measured(**json.loads(_file(training, kind).read_text()))
    return None


def kind_of(training: Training) -> str:
    """Trainings that a factor of their own is kept of."""
    return "distill" if getattr(training, "distillation", None) else training.kind


def measure(config: PipelineConfig) -> dict[str, dict[str, Any]]:
    """By training: a worker's seconds a step, and tokens, pairs or images a second of all workers. InputError where
    this machine would not run them."""
    if not cluster.starts_here(config.cluster):
        raise InputError("--measure is of this machine, and names another; leave it out", field="cluster.address")
    found, tokenizers = {}, sizing.tokenizer_models(config)
    for stage, own, upstream in with_upstream(config):
        if stage.name in tokenizers and isinstance(own, TokenizerConfig) and not is_warm_up(tokenizers[stage.name]):
            found[stage.name] = _measure_tokenizer(own, tokenizers[stage.name], f"stages.{stage.name}")
        training = training_of(own, upstream)
        if training is None or not training.measurable:
            continue
        seconds = _in_a_process(training.config, _step, (training,), f"stages.{stage.name}")
        _keep(training, Measured(seconds / step_cost(training), f"{datetime.now(UTC):%Y-%m-%d}"))
        found[stage.name] = {
            "seconds_per_step": seconds,
            f"{training.unit}_per_second": training.units / seconds,
        }
    return found


@dataclass(frozen=True)
class MeasuredTokenizer:
    """A worker's seconds of a step at these settings, the numbers that are trained, and the day."""

    seconds: float
    trained: int
    on: str


def known_tokenizer(config: TokenizerConfig) -> MeasuredTokenizer | None:
    """What was measured of a tokenizer's training at just these settings; None where nothing was."""
    try:
        return MeasuredTokenizer(**json.loads(_tokenizer_file(config).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def same_steps(measured: PipelineConfig, config: PipelineConfig) -> None:
    """Keep what was measured for `measured` for a config too whose trainings differ in how many steps they have, and
    have as many of each kind in proportion."""
    for name in sizing.tokenizer_models(measured):
        before, now = getattr(measured.stages, name), getattr(config.stages, name)
        if found := known_tokenizer(before):
            write(_tokenizer_file(now), found)


def images_of_a_step(config: TokenizerConfig) -> float:
    """Images and videos of a step of all workers, on the average."""
    data = config.data
    counts = {"image": data.image_batch, "video": data.video_batch}
    if len(data.kinds) == 1:
        return counts[data.kinds[0]]
    return data.image_ratio * data.image_batch + (1 - data.image_ratio) * data.video_batch


def _measure_tokenizer(config: TokenizerConfig, model: Any, field: str) -> dict[str, Any]:
    seconds, trained = _in_a_process(config, _tokenizer_step, (config, model), field)
    write(_tokenizer_file(config), MeasuredTokenizer(seconds, trained, f"{datetime.now(UTC):%Y-%m-%d}"))
    return {"seconds_per_step": seconds, "images_per_second": images_of_a_step(config) / seconds}


def _tokenizer_file(config: TokenizerConfig) -> Path:
    """Of what its steps' time depends on: all but the data's places and what a run does beside steps."""
    parts = {"model", "official", "quantizer", "loss", "perceptual", "discriminator", "data", "engine", "steps"}
    told = config.model_dump(mode="json", include=parts) | {"workers": config.workers.most}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
    device = "gpu" if config.workers.gpus else f"{config.workers.cpus:g}-cpus"
    return storage.cache_folder() / "measured" / f"tokenizer-{device}-{digest}.json"


def _tokenizer_step(config: TokenizerConfig, model: Any) -> tuple[float, int]:
    from omniloom.stages.tokenizer.measured import step_seconds

    return step_seconds(config, model)


def _in_a_process(config: Any, step: Callable, given: tuple, field: str) -> Any:
    """`step(*given)` in a process of its own, which has the variables of ranks, and as many beside it as ranks share
    this machine's CPUs: they are slower together. What the slowest gives."""
    count = _side_by_side(config.workers)
    with _as_of_ranks(config), ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        try:
            return max(done.result() for done in [pool.submit(step, *given) for _ in range(count)])
        except BrokenProcessPool:
            raise InputError(
                "a step was killed, by lack of memory as it seems; take a smaller one", field=field
            ) from None


def _side_by_side(workers: WorkersConfig) -> int:
    """Ranks that compute on this machine's CPUs at once; those on GPUs have one each."""
    return 1 if workers.gpus else max(1, min(workers.most, int((os.cpu_count() or 1) // (workers.cpus or 1))))


def _step(training: Training) -> float:
    if isinstance(training, ScorerTraining):
        from omniloom.stages.scorer.measured import step_seconds as of_scorer

        return of_scorer(training.config, training.model)
    from omniloom.stages.train.measured import step_seconds

    workers = training.config.workers.most
    return step_seconds(training.config, training.model, workers, training.distillation)


@contextmanager
def _as_of_ranks(config: Any) -> Iterator[None]:
    """Processes that start inside have the heap of ranks."""
    before = dict(os.environ)
    os.environ |= {} if config.workers.gpus else KEEPS_FREED
    try:
        yield
    finally:
        for name in KEEPS_FREED:
            os.environ.pop(name, None)
        os.environ |= before


def _file(training: Training, kind: str) -> Path:
    workers = training.config.workers
    device = "gpu" if workers.gpus else f"{workers.cpus:g}-cpus"
    of_kind = "" if kind == "train" else f"{kind}-"
    return storage.cache_folder() / "measured" / f"{of_kind}{device}-{training.config.engine.precision}.json"


def _keep(training: Training, measured: Measured) -> None:
    write(_file(training, kind_of(training)), measured)


def write(file: Path, measured: Any) -> None:
    """Keep a dataclass of figures in the machine's cache."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(measured)))
    partial.replace(file)
