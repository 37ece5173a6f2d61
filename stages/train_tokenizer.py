"""Stages `tokenizer_image`, `tokenizer_joint`, `tokenizer_kl`: adversarial training of the tokenizer, step by step.

In: ingest's records, and for a later stage the tokenizer of the one before, whose weights it starts from.
Out: `tokenizer/` (tokenizer.safetensors, config.json), `report/history.jsonl` (the curves), and
`report/reconstruction.png`.
The stages differ by config alone: which kinds they see, at which sizes, from which weights, with which bottleneck.
Source: OmniTokenizer, arXiv 2406.09399, section 3.3 (progressive training).
"""
from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from infra import storage
from infra.artifacts import Artifact
from infra.errors import InputError
from infra.training.config import EngineConfig, OptimizerConfig, WorkersConfig
from models.tokenizer.build import DEFAULT_ARCHITECTURE, AnyTokenizerConfig, build_tokenizer, config_from_dict
from models.tokenizer.config import TiTokConfig, TokenizerConfig
from models.tokenizer.losses_config import DiscriminatorConfig, TokenizerLossConfig
from models.tokenizer.quantizers.config import QuantizerConfig
from stages.aspects import Aspects, check_names
from stages.base import PLACEMENT, Needs, StageContext

VERSION = 2


class DataConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kinds: tuple[Literal["image", "video"], ...] = Field(("image",), min_length=1)
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (256,), min_length=1, description="pixels a side of a square; a step draws one of them")
    aspects: tuple[str, ...] = Field(("1:1",), min_length=1, description="ratios, width:height; a clip is cut to the "
                                     "nearest, of as many pixels as the square, and a step has clips of one")
    frames: int = Field(17, ge=1, description="frames of a video clip; 1 modulo the temporal patch")
    image_batch: int = Field(64, ge=1, description="images a step, over all workers")
    video_batch: int = Field(16, ge=1, description="video clips a step, over all workers")
    image_ratio: float = Field(0.5, ge=0, le=1, description="share of steps on images where both kinds are trained")
    flip: bool = Field(False, description="mirror half of the examples; not for letters and digits")
    cache_bytes: int = Field(1 << 30, ge=0, json_schema_extra=PLACEMENT,
                             description="decoded clips a worker keeps in memory")

    @field_validator("aspects")
    @classmethod
    def _ratios(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(aspects)


class PerceptualConfig(BaseModel):
    """Where the frozen networks of the perceptual losses lie; none comes with the package."""

    model_config = ConfigDict(extra="forbid")
    vgg: str = Field(description="URI of VGG-16's weights under torchvision's names, .safetensors or .pth")
    heads: str | None = Field(None, description="URI of the LPIPS heads; the Gram loss needs none")


def _architecture(value: Any) -> str:
    """Which config class `value` is meant for, or of."""
    if isinstance(value, dict):
        return str(value.get("architecture", DEFAULT_ARCHITECTURE))
    return getattr(value, "architecture", DEFAULT_ARCHITECTURE)


ModelConfig = Annotated[
    Annotated[TokenizerConfig, Tag("omni")] | Annotated[TiTokConfig, Tag("titok")], Discriminator(_architecture)]


class Config(BaseModel):
    """`model` None takes the architecture of the tokenizer that training starts from."""

    model_config = ConfigDict(extra="forbid")
    model: ModelConfig | None = None
    quantizer: QuantizerConfig | None = Field(
        None, description="another bottleneck than that of the tokenizer that training starts from")
    loss: TokenizerLossConfig = Field(default_factory=TokenizerLossConfig)
    perceptual: PerceptualConfig | None = None
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
        if self.loss.needs_perceptual and not self.perceptual:
            raise ValueError("perceptual is missing: the loss gives a weight to it")
        if self.workers.accumulate != 1:
            raise ValueError("workers.accumulate: a tokenizer step has one forward pass, expected 1")
        return self


class KLConfig(Config):
    """Stage 3: what the joint stage has learned, with a continuous bottleneck in place of its codes."""

    quantizer: QuantizerConfig = Field(default_factory=lambda: QuantizerConfig(kind="kl"))


def check_fit(model: AnyTokenizerConfig, data: DataConfig) -> None:
    """ValueError where a size or a number of frames does not fit the model."""
    aspects = Aspects(data.aspects, model.patch_size)
    aspects.check(data.sizes, "data.sizes", "data.aspects")
    if isinstance(model, TiTokConfig):
        if "video" in data.kinds:
            raise ValueError("data.kinds: a TiTok is for images alone, expected [image]")
        for size in data.sizes:
            for bucket, name in enumerate(aspects.names):
                if (shape := aspects.shape(bucket, size)) != model.size:
                    raise ValueError(f"data.sizes: {size} at aspect {name} makes pictures of {shape[0]}x{shape[1]}, "
                                     f"model.image_size is {model.size[0]}x{model.size[1]}")
        if model.proxy_codes is not None:
            raise ValueError("model.proxy_codes: this stage trains on pixels, expected null")
    elif "video" in data.kinds and (data.frames - 1) % model.temporal_patch:
        raise ValueError(f"data.frames: expected 1 + a multiple of temporal_patch {model.temporal_patch}, "
                         f"got {data.frames}")


@dataclass
class Job:
    """What a training worker gets; picklable."""

    stage: str
    config: Config
    model: AnyTokenizerConfig
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
    start_from = context.tokenizer if len(context.inputs) > 1 else None
    model = config.model
    if start_from:
        file = start_from.file("tokenizer", "config.json")
        model = model or config_from_dict(storage.read_json(file), file)
    if model is None:
        raise InputError("is missing: the architecture of the tokenizer", field=f"stages.{context.stage}.model")
    if config.quantizer:
        model = replace(model, quantizer=config.quantizer)
    try:
        check_fit(model, config.data)
    except ValueError as error:
        raise InputError(str(error), field=f"stages.{context.stage}") from None
    job = Job(context.stage, config, model, context.inputs["ingest"], start_from, context.output, context.state,
              context.progress, context.tracker)
    launch(train_worker, job, config.workers, f"{context.stage}-{context.fingerprint[:12]}", context.work)
    return storage.read_json(storage.join(context.state, "metrics.json"))


def load_tokenizer(artifact: Artifact):
    """The trained tokenizer of a tokenizer stage's artifact, in eval mode on the CPU."""
    from safetensors.torch import load_file

    folder = artifact.local() / "tokenizer"
    file = str(folder / "config.json")
    model = build_tokenizer(config_from_dict(storage.read_json(file), file))
    model.load_state_dict(load_file(folder / "tokenizer.safetensors"))
    return model.eval()


def train_worker(job: Job) -> None:
    """The body of one rank: needs a process group, knows nothing of Ray."""
    import torch
    import torch.distributed as dist

    from infra.training import checkpoint
    from infra.training.engine import Engine
    from infra.training.loop import Loop
    from models.tokenizer.adversarial import DiscriminatorObjective
    from models.tokenizer.losses import TokenizerObjective
    from stages import reconstruction
    from stages.clips import ClipBatches
    from stages.history import History
    from stages.order import hash_seed

    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.seed)
    objective = TokenizerObjective(job.model, config.loss, _perceptual(config.perceptual))
    objective.tokenizer.set_activation_checkpointing(config.engine.activation_checkpointing)
    if job.start_from:
        _start_from(objective.tokenizer, job)
    micro = max(config.data.image_batch, config.data.video_batch) // ranks
    engines = {"generator": Engine(objective, config.optimizer, config.engine, config.steps, micro)}
    if config.discriminator:
        # Small enough to be whole on every rank, and the generator's loss needs it whole: ZeRO stage 1 at most.
        settings = config.engine.model_copy(update={"zero_stage": min(1, config.engine.zero_stage), "ema_decay": 0.0})
        engines["discriminator"] = Engine(
            DiscriminatorObjective(config.discriminator), config.discriminator_optimizer or config.optimizer, settings,
            config.steps, micro)
    generator, critic = engines["generator"], engines.get("discriminator")
    batches = ClipBatches(job.ingest, "train", config.data, job.model.patch_size, config.seed, rank, ranks)
    held_out = ClipBatches(job.ingest, "validation", config.data, job.model.patch_size, config.seed, 0, 1)
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
        if critic and config.loss.trains_discriminator(step):
            critic_loss, critic_logs = critic(pixels, recon.detach(), step)
            critic.backward(critic_loss)
            critic.step(step)
            logs |= {name: float(value) for name, value in critic_logs.items()}
        shared = ("loss", "lr", "grad_norm")
        return ({name if name in shared else f"{kind}_{name}": v for name, v in logs.items()}, len(pixels))

    def validate(step: int) -> None:
        with generator.averaged(), generator.full_weights() as module:
            if rank:
                return
            metrics, picture = reconstruction.validate(
                module.tokenizer, held_out.batches(config.validation_examples), generator)
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


def _perceptual(config: PerceptualConfig | None):
    """The frozen network of the perceptual losses, from wherever its weights lie."""
    import tempfile
    from pathlib import Path

    from models.tokenizer.perceptual import read_perceptual

    if config is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        files: dict[str, Path | None] = {"vgg": None, "heads": None}
        try:
            for field in files:
                if uri := getattr(config, field):
                    files[field] = Path(folder) / f"{field}{Path(uri).suffix}"
                    storage.copy_file(storage.absolute(uri), str(files[field]))
            return read_perceptual(files["vgg"], files["heads"])
        except (OSError, ValueError) as error:
            raise InputError(str(error), field="perceptual", file=config.vgg) from None


def _start_from(tokenizer, job: Job) -> None:
    """Take over the weights of the stage before: its codebook too, unless this stage has another bottleneck."""
    known = load_tokenizer(job.start_from)
    old, new = known.config.quantizer, tokenizer.config.quantizer
    seen = job.start_from.manifest["config"]["data"]["kinds"]
    # Video parts that were never trained are made from the image parts.
    inflate = {"inflate_video": True} if "video" in job.config.data.kinds and "video" not in seen else {}
    tokenizer.load_from(known.state_dict(), **inflate,
                        new_bottleneck=(old.kind, old.dim, old.size) != (new.kind, new.dim, new.size))


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
