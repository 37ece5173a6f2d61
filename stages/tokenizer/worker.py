"""The body of each rank of a tokenizer stage: it builds the tokenizer and its critic, and trains both."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import within
from omniloom.infra.figures import finite
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.loop import Loop
from omniloom.models.tokenizer.adversarial import DiscriminatorObjective
from omniloom.models.tokenizer.base import VisualTokenizer, is_in_block
from omniloom.models.tokenizer.build import patch_size_of
from omniloom.models.tokenizer.config import RAEConfig, TiTokConfig, VQGANConfig
from omniloom.models.tokenizer.losses import TokenizerObjective
from omniloom.models.tokenizer.perceptual import load_perceptual, read_weights
from omniloom.models.tokenizer.semantic import SemanticAlignment
from omniloom.models.tokenizer.titok import ProxyObjective, TiTok
from omniloom.models.tokenizer.vit import ViT
from omniloom.stages.checkpoints.outside import read_copy
from omniloom.stages.checkpoints.tokenizer import load_tokenizer, read_official
from omniloom.stages.checkpoints.vision_encoder import load_encoder
from omniloom.stages.data.clips import ClipBatches
from omniloom.stages.tokenizer.config import NamedRAEConfig, PerceptualConfig, is_warm_up
from omniloom.stages.tokenizer.job import Job
from omniloom.stages.tokenizer.trainer import TokenizerTrainer
from omniloom.stages.tokenizer.warm_up import WarmUpTrainer


def train_worker(job: Job) -> None:
    """The body of one rank: needs a process group, knows nothing of Ray."""
    config, rank = job.config, dist.get_rank()
    trainer, clips = assemble(job)
    loop = Loop(
        config.steps,
        config.workers,
        trainer,
        clips,
        job.state,
        job.progress,
        config.validate_every,
        # What it starts from, on these clips.
        validate_first=bool(job.start_from or config.official) and not is_warm_up(job.model),
        numerics=config.engine,
    )
    last = loop.run()
    if rank == 0:
        job.progress.say("saving")
    weights = trainer.generator.state_dict()
    if rank == 0:
        _save(trainer, weights, last | loop.guard.save(job.output))
    dist.barrier()


def assemble(job: Job) -> tuple[TokenizerTrainer, ClipBatches]:
    """What a rank trains with, before the first step."""
    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    torch.manual_seed(config.seed)
    engines = engines_of(job, ranks)
    clips, held_out = (
        ClipBatches(job.records, split, config.data, patch_size_of(job.model), config.seed, rank, ranks)
        for split in ("train", "validation")
    )
    kind = WarmUpTrainer if is_warm_up(job.model) else TokenizerTrainer
    return kind(job, engines, held_out, rank, ranks), clips


def engines_of(job: Job, ranks: int) -> dict[str, Engine]:
    """The generator and, where there is one, the discriminator, for one of so many ranks."""
    config = job.config
    objective = _objective(job)
    objective.tokenizer.set_activation_checkpointing(config.engine.activation_checkpointing)
    micro = -(-max(config.data.image_batch, config.data.video_batch) // ranks)
    engines = {
        "generator": Engine(objective, config.optimizer, config.engine, config.steps, micro, is_in_block=is_in_block)
    }
    if config.discriminator:
        # Small enough to be whole on every rank, and the generator's loss needs it whole: ZeRO stage 1 at most.
        settings = config.engine.model_copy(update={"zero_stage": min(1, config.engine.zero_stage), "ema_decay": 0.0})
        engines["discriminator"] = Engine(
            DiscriminatorObjective(config.discriminator),
            config.discriminator_optimizer or config.optimizer.by_elements,
            settings,
            config.steps,
            micro,
        )
    return engines


def _objective(job: Job) -> TokenizerObjective | ProxyObjective:
    """What is trained, its weights from where the stage starts."""
    if isinstance(job.model, TiTokConfig) and is_warm_up(job.model):
        proxy = read_official(job.config.official) if job.config.official else load_tokenizer(_before(job))
        return ProxyObjective(job.model, proxy)
    objective = TokenizerObjective(job.model, job.config.loss, _perceptual(job.config.perceptual), _alignment(job))
    _start_from(objective.tokenizer, job)
    if job.config.train_only == "decoder":
        objective.tokenizer.freeze_encoder()
    return objective


def _before(job: Job) -> Artifact:
    """The tokenizer of the stage before, which a warm-up needs."""
    assert job.start_from, "checked before the ranks start"
    return job.start_from


def _perceptual(config: PerceptualConfig | None):
    """The frozen network of the perceptual losses, from wherever its weights lie."""
    if config is None:
        return None
    heads = config.heads and read_copy(config.heads, read_weights, "perceptual.heads")
    vgg = read_copy(config.vgg, read_weights, "perceptual.vgg")
    with within("perceptual"):
        return load_perceptual(vgg, heads or None, vgg_source=config.vgg, heads_source=str(config.heads))


def _alignment(job: Job) -> Callable[[int], SemanticAlignment] | None:
    """What makes the alignment of latents of so many channels; None where there is none."""
    if not (config := job.config.alignment):
        return None
    if not (encoder := _encoder(job, config.encoder, "alignment.encoder")):
        return None
    margins = {"cosine_margin": config.cosine_margin, "distance_margin": config.distance_margin}
    return lambda latent_dim: SemanticAlignment(encoder, latent_dim, config.weight, **margins)


def _encoder(job: Job, named: str | None, field: str) -> ViT | None:
    """The encoder of the folder that the config names, or of the scorer; None where steps are timed before there is
    one."""
    uri = named or job.scorer
    return load_encoder(uri, field) if uri else None


def _start_from(tokenizer: VisualTokenizer, job: Job) -> None:
    """Take over the weights of a released checkpoint, or of the stage before: its codebook too, unless this stage has
    another bottleneck."""
    if job.config.official:
        known, inflate = read_official(job.config.official), {}
        if isinstance(job.model, VQGANConfig):
            tokenizer.load_from(known.state_dict())
            return
    elif job.start_from:
        known = load_tokenizer(job.start_from)
        if isinstance(job.model, RAEConfig | VQGANConfig):
            tokenizer.load_from(known.state_dict())
            return
        if is_warm_up(known.config):
            cast(TiTok, tokenizer).start_from_warm_up(known.state_dict())
            return
        seen = job.start_from.manifest["config"]["data"]["kinds"]
        # Video parts that were never trained are made from the image parts; those of a released checkpoint are.
        fresh = "video" in job.config.data.kinds and "video" not in seen and known.config.compat == "corrected"
        inflate = {"inflate_video": True} if fresh else {}
    else:
        if isinstance(job.model, RAEConfig):
            named = cast(NamedRAEConfig, job.config.model).encoder
            if encoder := _encoder(job, named, "model.encoder"):
                tokenizer.take_encoder(encoder)
        return
    old, new = known.config.quantizer, tokenizer.config.quantizer
    tokenizer.load_from(
        known.state_dict(), **inflate, new_bottleneck=(old.kind, old.dim, old.size) != (new.kind, new.dim, new.size)
    )


def _save(trainer: TokenizerTrainer, weights: dict[str, torch.Tensor], last: dict[str, float]) -> None:
    """`tokenizer/` and `report/` of the artifact, and the stage's metrics."""
    job, prefix = trainer.job, "tokenizer."
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
    trainer.history.save(storage.join(job.output, "report", "history.jsonl"))
    validation = storage.read_json(storage.join(job.state, "validation.json")) or {}
    metrics = {"steps": job.config.steps, **validation, **last, "parameters": sum(v.numel() for v in weights.values())}
    storage.write_json(storage.join(job.state, "metrics.json"), finite(metrics))
