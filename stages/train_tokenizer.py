"""Stages `tokenizer_image` and `tokenizer_joint`: adversarial training of the OmniTokenizer, in two steps.

In: ingest's records, and for the joint stage the image stage's tokenizer, whose weights it starts from.
Out: `tokenizer/` (tokenizer.safetensors, config.json), `report/history.jsonl` (the curves), and
`report/reconstruction.png`.
The two stages differ by config alone: which kinds they see, at which sizes, from which weights.
Source: OmniTokenizer, arXiv 2406.09399, section 3.3 (progressive training).
"""
from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from infra import storage
from infra.artifacts import Artifact
from infra.errors import InputError
from infra.training.config import EngineConfig, OptimizerConfig, WorkersConfig
from models.tokenizer.config import DiscriminatorConfig, TokenizerConfig, TokenizerLossConfig
from stages.base import PLACEMENT, Needs, StageContext

VERSION = 1


class DataConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kinds: tuple[Literal["image", "video"], ...] = Field(("image",), min_length=1)
    sizes: tuple[int, ...] = Field((256,), min_length=1, description="pixels a side; a step draws one of them")
    frames: int = Field(17, ge=1, description="frames of a video clip; 1 modulo the temporal patch")
    image_batch: int = Field(64, ge=1, description="images a step, over all workers")
    video_batch: int = Field(16, ge=1, description="video clips a step, over all workers")
    image_ratio: float = Field(0.5, ge=0, le=1, description="share of steps on images where both kinds are trained")
    flip: bool = Field(False, description="mirror half of the examples; not for letters and digits")
    cache_bytes: int = Field(1 << 30, ge=0, json_schema_extra=PLACEMENT,
                             description="decoded clips a worker keeps in memory")


class Config(BaseModel):
    """`model` None takes the architecture of the tokenizer that training starts from."""

    model_config = ConfigDict(extra="forbid")
    model: TokenizerConfig | None = None
    loss: TokenizerLossConfig = Field(default_factory=TokenizerLossConfig)
    discriminator: DiscriminatorConfig | None = None
    data: DataConfig = Field(default_factory=DataConfig)
    steps: int = Field(500_000, ge=1)
    seed: int = Field(0, ge=0)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig | None = Field(None, description="like `optimizer` where not given")
    engine: EngineConfig = Field(default_factory=EngineConfig)
    workers: WorkersConfig = Field(default_factory=WorkersConfig, json_schema_extra=PLACEMENT)
    validate_every: int = Field(500, ge=1, json_schema_extra=PLACEMENT, description="steps between validations")
    validation_examples: int = Field(64, ge=1, json_schema_extra=PLACEMENT)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Config:
        if self.model:
            check_fit(self.model, self.data)
        for batch, kind in ((self.data.image_batch, "image"), (self.data.video_batch, "video")):
            if kind in self.data.kinds and batch % self.workers.count:
                raise ValueError(f"data.{kind}_batch {batch} does not divide by workers.count {self.workers.count}")
        if self.workers.accumulate != 1:
            raise ValueError("workers.accumulate: a tokenizer step has one forward pass, expected 1")
        return self


def check_fit(model: TokenizerConfig, data: DataConfig) -> None:
    """ValueError where a size or a number of frames does not fit the patches."""
    for size in data.sizes:
        if size % model.patch_size:
            raise ValueError(f"data.sizes: {size} is no multiple of patch_size {model.patch_size}")
    if "video" in data.kinds and (data.frames - 1) % model.temporal_patch:
        raise ValueError(f"data.frames: expected 1 + a multiple of temporal_patch {model.temporal_patch}, "
                         f"got {data.frames}")


@dataclass
class Job:
    """What a training worker gets; picklable."""

    stage: str
    config: Config
    model: TokenizerConfig
    ingest: Artifact
    start_from: Artifact | None
    output: str
    state: str
    progress: Any
    tracker: Any


def needs(config: Config) -> Needs:
    return Needs(worker_cpus=config.workers.count * config.workers.cpus,
                 worker_gpus=config.workers.count * config.workers.gpus)


def run(context: StageContext) -> dict:
    from infra.training.launch import launch

    config: Config = context.config
    start_from = context.inputs.get("tokenizer_image")
    model = config.model
    if start_from:
        known = storage.read_json(start_from.file("tokenizer", "config.json"))
        model = model or _tokenizer_config(known)
    if model is None:
        raise InputError("is missing: the architecture of the tokenizer", field=f"stages.{context.stage}.model")
    try:
        check_fit(model, config.data)
    except ValueError as error:
        raise InputError(str(error), field=f"stages.{context.stage}") from None
    job = Job(context.stage, config, model, context.inputs["ingest"], start_from, context.output, context.state,
              context.progress, context.tracker)
    launch(train_worker, job, config.workers, f"{context.stage}-{context.fingerprint[:12]}", context.work)
    return storage.read_json(storage.join(context.state, "metrics.json"))


def _tokenizer_config(values: dict) -> TokenizerConfig:
    from models.tokenizer.quantizers.config import QuantizerConfig

    return TokenizerConfig(**{**values, "quantizer": QuantizerConfig(**values["quantizer"])})


def load_tokenizer(artifact: Artifact):
    """The trained OmniTokenizer of a tokenizer stage's artifact, in eval mode on the CPU."""
    from safetensors.torch import load_file

    from models.tokenizer.omni import OmniTokenizer

    folder = artifact.local() / "tokenizer"
    model = OmniTokenizer(_tokenizer_config(storage.read_json(str(folder / "config.json"))))
    model.load_state_dict(load_file(folder / "tokenizer.safetensors"))
    return model.eval()


def train_worker(job: Job) -> None:
    """The body of one rank: needs a process group, knows nothing of Ray."""
    import torch
    import torch.distributed as dist

    from infra.training import checkpoint
    from infra.training.engine import Engine
    from infra.training.loop import Loop
    from models.tokenizer.losses import DiscriminatorObjective, TokenizerObjective
    from stages.clips import ClipBatches
    from stages.history import History
    from stages.order import hash_seed

    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.seed)
    objective = TokenizerObjective(job.model, config.loss)
    objective.tokenizer.set_activation_checkpointing(config.engine.activation_checkpointing)
    if job.start_from:
        state = load_tokenizer(job.start_from).state_dict()
        if "video" in config.data.kinds:
            objective.tokenizer.inflate_from_image(state)
        else:
            objective.tokenizer.load_state_dict(state)
    micro = max(config.data.image_batch, config.data.video_batch) // ranks
    engines = {"generator": Engine(objective, config.optimizer, config.engine, config.steps, micro)}
    if config.discriminator:
        # Small enough to be whole on every rank, and the generator's loss needs it whole: ZeRO stage 1 at most.
        settings = config.engine.model_copy(update={"zero_stage": min(1, config.engine.zero_stage), "ema_decay": 0.0})
        engines["discriminator"] = Engine(
            DiscriminatorObjective(config.discriminator), config.discriminator_optimizer or config.optimizer, settings,
            config.steps, micro)
    generator, critic = engines["generator"], engines.get("discriminator")
    batches = ClipBatches(job.ingest, "train", config.data, config.seed, rank, ranks)
    held_out = ClipBatches(job.ingest, "validation", config.data, config.seed, 0, 1)
    history = History(job.state, job.tracker) if rank == 0 else None

    def train_step(step: int) -> tuple[dict[str, float], float]:
        pixels = batches.at(step).to(generator.device)
        # What a step draws (a KL bottleneck's noise) depends on the step alone, so that a resumed run draws the same.
        torch.manual_seed(hash_seed(config.seed, step, rank))
        kind = "video" if pixels.ndim == 5 else "image"
        weight = config.loss.adversarial_schedule(step) if critic else 0.0
        loss, logs, recon = generator(pixels, critic.engine if weight else None, weight)
        generator.backward(loss)
        logs = {name: float(value) for name, value in logs.items()} | generator.step(step)
        if weight:
            critic_loss, critic_logs = critic(pixels, recon.detach())
            critic.backward(critic_loss)
            critic.step(step)
            logs |= {name: float(value) for name, value in critic_logs.items()}
        shared = ("loss", "lr", "grad_norm")
        return ({name if name in shared else f"{kind}_{name}": v for name, v in logs.items()}, len(pixels))

    def validate(step: int) -> None:
        with generator.averaged(), generator.full_weights() as module:
            if rank:
                return
            metrics, picture = _validate(module.tokenizer, held_out, config, generator)
            if not metrics:  # the validation split holds none of these kinds
                return
            history.add(metrics, step)
            job.tracker.log_image(picture, "reconstruction", step)
            storage.write_bytes(storage.join(job.output, "report", "reconstruction.png"), picture)
            storage.write_json(storage.join(job.state, "validation.json"), metrics)

    loop = Loop(config.steps, "images", config.workers, engines, train_step, lambda: {}, batches.describe, job.state,
                history.add if history else lambda *_: None, job.progress,
                {"validate": (config.validate_every, validate)})
    start, units = 0, 0.0
    if found := checkpoint.latest(job.state):
        checkpoint.load(found, engines)
        start, units = found["step"], found["position"]["units"]
    if history:
        history.rewind(start)
    last = loop.run(start, units)
    weights = generator.state_dict()
    if rank == 0:
        _save(job, weights, last, history)
    batches.close()
    dist.barrier()


def _validate(tokenizer, held_out, config: Config, engine) -> tuple[dict, bytes]:
    """PSNR per kind on the validation split (training examples' own split is never used), and a picture."""
    import torch

    from models.tokenizer.losses import psnr

    was_training = tokenizer.training
    tokenizer.eval()
    metrics, rows = {}, []
    with torch.no_grad(), engine.autocast():
        for kind in config.data.kinds:
            pixels = held_out.first(kind, config.validation_examples)
            if pixels is None:
                continue
            recon, encoded = tokenizer(pixels.to(engine.device))
            metrics[f"validation_psnr_{kind}"] = float(psnr(recon, pixels.to(engine.device)))
            if encoded.codes is not None:
                metrics[f"validation_codes_used_{kind}"] = encoded.codes.unique().numel()
            rows.append((pixels, recon.float().cpu()))
    tokenizer.train(was_training)
    return metrics, _side_by_side(rows) if rows else b""


def _side_by_side(pairs: list[tuple], columns: int = 12) -> bytes:
    """Originals above reconstructions, as PNG; a video shows the frames of its first clips."""
    from models.bundle import to_uint8
    from stages import report

    originals, recons = [], []
    for original, recon in pairs:
        for source, target in ((original, originals), (recon, recons)):
            pixels = to_uint8(source)
            target += list(pixels[:columns]) if pixels.ndim == 4 else [frame for clip in pixels[:2]
                                                                     for frame in clip[:columns // 2]]
    return report.pairs(originals, recons, columns)


def _save(job: Job, weights: dict, last: dict, history) -> None:
    import json
    import tempfile
    from pathlib import Path

    from safetensors.torch import save_file

    prefix = "tokenizer."
    weights = {name.removeprefix(prefix): value.contiguous() for name, value in weights.items()
               if name.startswith(prefix)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.safetensors"
        save_file(weights, file)
        storage.copy_file(str(file), storage.join(job.output, "tokenizer", file.name))
    storage.write_bytes(storage.join(job.output, "tokenizer", "config.json"),
                        json.dumps(asdict(job.model), indent=2).encode())
    history.save(storage.join(job.output, "report", "history.jsonl"))
    validation = storage.read_json(storage.join(job.state, "validation.json")) or {}
    metrics = {"steps": job.config.steps, **validation, **last,
               "parameters": sum(v.numel() for v in weights.values())}
    storage.write_json(storage.join(job.state, "metrics.json"), metrics)
