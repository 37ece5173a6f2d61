"""Stages `tokenizer_image`, `tokenizer_joint`, `tokenizer_kl`: adversarial training of the tokenizer, step by step.

In: records, and where a stage before it makes one a tokenizer, whose weights it starts from.
Out: `tokenizer/` (tokenizer.safetensors, config.json), `report/history.jsonl` (the curves), and
`report/reconstruction.png`.
The stages differ by config alone: which kinds they see, at which sizes, from which weights, with which bottleneck.
Source: OmniTokenizer, arXiv 2406.09399, section 3.3 (progressive training).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, within
from omniloom.infra.figures import finite
from omniloom.models.tokenizer.build import AnyTokenizerConfig, build_tokenizer, config_from_dict
from omniloom.models.tokenizer.config import RAEConfig
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.checkpoints.outside import require_folder_of_weights, require_weights
from omniloom.stages.checkpoints.vision_encoder import encoder_config, load_encoder
from omniloom.stages.tokenizer.config import Config, KLConfig, NamedRAEConfig, PerceptualConfig, check_fit

__all__ = [
    "Config",
    "KLConfig",
    "VERSION",
    "check",
    "check_counts",
    "load_tokenizer",
    "needs",
    "resolved",
    "run",
    "train_worker",
]

VERSION = 4


@dataclass
class Job:
    """What a training worker gets; picklable."""

    stage: str
    config: Config
    model: AnyTokenizerConfig
    records: Artifact
    start_from: Artifact | None
    output: str
    state: str
    progress: Any
    tracker: Any


def needs(config: Config) -> Needs:
    return Needs(
        worker_cpus=config.workers.count * config.workers.cpus, worker_gpus=config.workers.count * config.workers.gpus
    )


def architecture(config: Config, known: AnyTokenizerConfig | None) -> AnyTokenizerConfig | None:
    """What a stage trains, where the stage before made `known`; None where nothing says."""
    if config.official:
        config = config.model_copy(update={"model": _official(config.official).config})
        known = None
    return _architecture(config, known, files=True)


def _architecture(config: Config, known: AnyTokenizerConfig | None, files: bool) -> AnyTokenizerConfig | None:
    """`architecture` of a stage that starts from no released checkpoint; without `files` None for an RAE, whose encoder
    is one."""
    model = config.model or known
    if config.model and known and model.architecture != known.architecture:
        raise InputError(
            f"training starts from a tokenizer of the architecture {known.architecture!r}, got {model.architecture!r}",
            field="model.architecture",
        )
    if not isinstance(model, RAEConfig):
        with within("quantizer"):
            return replace(model, quantizer=config.quantizer) if model and config.quantizer else model
    if config.quantizer:
        raise InputError("expected none: the latents of an RAE are its encoder's features", field="quantizer")
    if isinstance(model, NamedRAEConfig):
        if not files:
            return None
        with within("model"):
            model = RAEConfig(**vars(model) | {"encoder": encoder_config(model.encoder, "encoder")})
    return model


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """That there is an architecture to train, and that it fits the data; of a released checkpoint's that is known when
    the stage runs."""
    known = upstream.get("tokenizer")
    starts = bool(config.official) or "tokenizer" in upstream
    if not (starts or config.model):
        raise InputError("is missing: the architecture of the tokenizer", field="model")
    if not (starts or config.steps):
        raise InputError("expected at least 1: there is no tokenizer to take as it is", field="steps")
    kinds = getattr(upstream.get("records"), "kinds", None)
    for kind in config.data.kinds if config.steps else ():
        if kinds is not None and kind not in kinds:
            raise InputError(f"no source of stages.ingest.sources gives {kind}s", field="data.kinds")
    if files:
        _check_files(config)
    if not config.official:
        model = _architecture(config, known and known.model, files)
        if model:
            with within():
                check_fit(model, config.data)


def _check_files(config: Config) -> None:
    for field, uri in (
        ("official", config.official),
        ("perceptual.vgg", config.perceptual and config.perceptual.vgg),
        ("perceptual.heads", config.perceptual and config.perceptual.heads),
    ):
        if uri:
            require_weights(storage.absolute(uri), field)
    if isinstance(config.model, NamedRAEConfig):
        require_folder_of_weights(storage.absolute(config.model.encoder), "model.encoder")


def resolved(config: Config, upstream: Mapping[str, Any]) -> Config:
    """With the architecture that is trained as `model`; None where only a file tells that."""
    known = upstream.get("tokenizer")
    model = None if config.official else _architecture(config, known and known.model, files=True)
    return config.model_copy(update={"model": model, "quantizer": None, "official": None})


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> Iterator[str]:
    """That the corpus holds the kinds that are trained; a warning where there are fewer clips than a step takes."""
    for kind in config.data.kinds if config.steps else ():
        number = counts.get(f"records_train_{kind}", counts.get(f"records_{kind}"))
        batch = config.data.image_batch if kind == "image" else config.data.video_batch
        if number == 0:
            held = ", ".join(f"{k}s {counts.get(f'records_{k}', 0):,}" for k in ("image", "video", "text", "document"))
            raise InputError(
                f"the corpus holds no {kind} in its train split ({held}); leave {kind} out, or configure no tokenizer "
                "and stages.train.objectives {} for texts alone",
                field="data.kinds",
            )
        if number is not None and number < batch:
            yield f"{number:,} {kind}s in the train split, fewer than the {batch} of one step: each comes in every step"


def run(context: StageContext) -> dict:
    from omniloom.infra.training import checkpoint
    from omniloom.infra.training.launch import launch

    config: Config = context.config
    start_from = None if config.official else context.tokenizer
    known = start_from and storage.read_json(start_from.file("tokenizer", "config.json"))
    model = architecture(config, known and config_from_dict(known, start_from.file("tokenizer", "config.json")))
    with within():
        check_fit(model, config.data)
    checkpoint.check(context.state, config.workers.count, {"generator": config.engine})
    job = Job(
        context.stage,
        config,
        model,
        context.records,
        start_from,
        context.output,
        context.state,
        context.progress,
        context.tracker,
    )
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

    from omniloom.infra.training import checkpoint
    from omniloom.infra.training.engine import Engine
    from omniloom.infra.training.loop import Loop
    from omniloom.models.tokenizer.adversarial import DiscriminatorObjective
    from omniloom.models.tokenizer.losses import TokenizerObjective
    from omniloom.stages.data.clips import ClipBatches
    from omniloom.stages.data.order import hash_seed
    from omniloom.stages.reporting.history import History
    from omniloom.stages.tokenizer import reconstruction

    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.seed)
    objective = TokenizerObjective(job.model, config.loss, _perceptual(config.perceptual))
    objective.tokenizer.set_activation_checkpointing(config.engine.activation_checkpointing)
    _start_from(objective.tokenizer, job)
    micro = max(config.data.image_batch, config.data.video_batch) // ranks
    engines = {"generator": Engine(objective, config.optimizer, config.engine, config.steps, micro)}
    if config.discriminator:
        # Small enough to be whole on every rank, and the generator's loss needs it whole: ZeRO stage 1 at most.
        settings = config.engine.model_copy(update={"zero_stage": min(1, config.engine.zero_stage), "ema_decay": 0.0})
        engines["discriminator"] = Engine(
            DiscriminatorObjective(config.discriminator),
            config.discriminator_optimizer or config.optimizer,
            settings,
            config.steps,
            micro,
        )
    generator, critic = engines["generator"], engines.get("discriminator")
    batches = ClipBatches(job.records, "train", config.data, job.model.patch_size, config.seed, rank, ranks)
    held_out = ClipBatches(job.records, "validation", config.data, job.model.patch_size, config.seed, 0, 1)
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
        with generator.evaluated() as module:
            if module is None:
                return
            metrics, picture = reconstruction.validate(
                module.tokenizer, held_out.batches(config.validation_examples), generator
            )
            if not metrics:  # the validation split holds none of these kinds
                return
            history.add(metrics, step)
            job.tracker.log_image(picture, "reconstruction", step)
            storage.write_bytes(storage.join(job.output, "report", "reconstruction.png"), picture)
            storage.write_json(storage.join(job.state, "validation.json"), finite(metrics))

    loop = Loop(
        config.steps,
        "images",
        config.workers,
        engines,
        train_step,
        lambda: {},
        batches.describe,
        job.state,
        history.add if history else lambda *_: None,
        job.progress,
        {"validate": (config.validate_every, validate)},
    )
    start, position = 0, {"units": 0.0}
    if found := checkpoint.latest(job.state, job.progress.note):
        checkpoint.load(found, engines)
        start, position = found["step"], found["position"]
    if history:
        history.rewind(start)
    if start == 0 and (job.start_from or config.official):
        validate(0)  # what it starts from, on the same clips
    last = loop.run(start, position["units"], position.get("last"))
    if rank == 0:
        job.progress.say("saving")
    weights = generator.state_dict()
    if rank == 0:
        _save(job, weights, last, history)
    batches.close()
    dist.barrier()


def _perceptual(config: PerceptualConfig | None):
    """The frozen network of the perceptual losses, from wherever its weights lie."""
    from omniloom.models.tokenizer.perceptual import load_perceptual, read_weights

    if config is None:
        return None
    heads = config.heads and _read(config.heads, read_weights, "perceptual.heads")
    vgg = _read(config.vgg, read_weights, "perceptual.vgg")
    with within("perceptual"):
        return load_perceptual(vgg, heads or None, vgg_source=config.vgg, heads_source=str(config.heads))


def _official(uri: str):
    from omniloom.models.tokenizer import load_official

    return _read(uri, load_official, "official")


def _read(uri: str, reader: Callable[[str], Any], field: str) -> Any:
    """What `reader` makes of a file, by a copy on this machine; InputError naming the file and the config's field."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        local = str(Path(folder) / Path(uri).name)
        try:
            storage.copy_file(storage.absolute(uri), local)
            return reader(local)
        except (OSError, ValueError) as error:
            raise InputError(str(error).replace(local, uri), field=field, file=uri) from None


def _start_from(tokenizer, job: Job) -> None:
    """Take over the weights of a released checkpoint, or of the stage before: its codebook too, unless this stage has
    another bottleneck."""
    if job.config.official:
        known, inflate = _official(job.config.official), {}
    elif job.start_from:
        known = load_tokenizer(job.start_from)
        if isinstance(job.model, RAEConfig):
            tokenizer.load_from(known.state_dict())
            return
        seen = job.start_from.manifest["config"]["data"]["kinds"]
        # Video parts that were never trained are made from the image parts; those of a released checkpoint are.
        fresh = "video" in job.config.data.kinds and "video" not in seen and known.config.compat == "corrected"
        inflate = {"inflate_video": True} if fresh else {}
    else:
        if isinstance(job.model, RAEConfig):
            tokenizer.take_encoder(load_encoder(job.config.model.encoder, "model.encoder"))
        return
    old, new = known.config.quantizer, tokenizer.config.quantizer
    tokenizer.load_from(
        known.state_dict(), **inflate, new_bottleneck=(old.kind, old.dim, old.size) != (new.kind, new.dim, new.size)
    )


def _save(job: Job, weights: dict, last: dict, history) -> None:
    import json
    import tempfile
    from pathlib import Path

    from safetensors.torch import save_file

    prefix = "tokenizer."
    weights = {
        name.removeprefix(prefix): value.contiguous() for name, value in weights.items() if name.startswith(prefix)
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.safetensors"
        save_file(weights, file)
        storage.copy_file(str(file), storage.join(job.output, "tokenizer", file.name))
    storage.write_bytes(
        storage.join(job.output, "tokenizer", "config.json"), json.dumps(asdict(job.model), indent=2).encode()
    )
    history.save(storage.join(job.output, "report", "history.jsonl"))
    validation = storage.read_json(storage.join(job.state, "validation.json")) or {}
    metrics = {"steps": job.config.steps, **validation, **last, "parameters": sum(v.numel() for v in weights.values())}
    storage.write_json(storage.join(job.state, "metrics.json"), finite(metrics))
