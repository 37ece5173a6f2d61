"""The body of each rank of stage `train`: it builds the model, trains it, and saves what sampling needs."""

from __future__ import annotations

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from omniloom.infra import storage
from omniloom.infra.figures import finite
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.loop import Loop
from omniloom.infra.training.sequence import SequenceGroup
from omniloom.infra.training.shards import gathered
from omniloom.infra.training.tensors import write_whole
from omniloom.models.folder import stored_state
from omniloom.models.text import TextTokenizer
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.llama.load import is_text_parameter, load_llama
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.alignment import FeatureAlignment
from omniloom.models.unified.objectives.objective import UnifiedObjective, part_of
from omniloom.stages.checkpoints.language_model import local_folder
from omniloom.stages.checkpoints.text_tokenizer import read_text_tokenizer
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.train.config import Config, TrainEngineConfig, held_features, unified_config, visual_sizes
from omniloom.stages.train.job import Job
from omniloom.stages.train.rows import RowLoader
from omniloom.stages.train.samples import with_tokenizers
from omniloom.stages.train.trainer import UnifiedTrainer


def assemble(job: Job) -> tuple[Engine, UnifiedTrainer, RowLoader]:
    """What a rank trains with, before the first step."""
    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    tokens, held_out = (TokenSet(job.tokens, split, config.cache_bytes) for split in ("train", "validation"))
    text = TextTokenizer.load(tokens.text_json)
    torch.manual_seed(config.seed)
    model = _model(config, unified_config(config, text.vocab_size, visual_sizes(tokens.facts), text.specials))
    engine = _engine(_objective(model, config, tokens.facts, sequence_group(config.engine)), config, ranks)
    trainer = UnifiedTrainer(job, engine, text, held_out, rank, ranks)
    return engine, trainer, RowLoader(tokens, model.config, config, rank, ranks, engine.device.type)


def train_worker(job: Job) -> None:
    """The body of one rank: needs a process group, knows nothing of Ray."""
    config, rank = job.config, dist.get_rank()
    engine, trainer, loader = assemble(job)
    loop = Loop(
        config.steps,
        config.workers,
        trainer,
        loader,
        job.state,
        job.progress,
        config.validate_every,
        numerics=config.engine,
    )
    last = loop.run()
    if rank == 0:
        job.progress.say("saving")
    with tempfile.TemporaryDirectory() as folder:
        parameters = _write_weights(engine, trainer.model_config, Path(folder, "unified.safetensors"))
        if rank == 0:
            _save(folder, parameters, trainer, last | loop.guard.save(job.output))
    dist.barrier()


def _model(config: Config, model_config: UnifiedConfig) -> UnifiedModel:
    """The model before its first step. Under ZeRO-3, which divides rank 0's, it is without memory on the others."""
    if config.engine.zero_stage < 3:
        return _start(config, model_config)
    model = _start(config, model_config) if dist.get_rank() == 0 else None
    shape = gathered(model and model.config)[0]
    return model or _without_memory(shape)


def _start(config: Config, model_config: UnifiedConfig) -> UnifiedModel:
    """The model before its first step: new, or with the weights of the checkpoint that the config names. That may hold
    a head of its own where its config says that it is tied; the model's config then says so."""
    if not config.init_from:
        return UnifiedModel(model_config)
    folder = local_folder(config.init_from)
    added = read_text_tokenizer(str(folder / "tokenizer.json")).added
    return load_llama(folder, new_tokens=added, **{f.name: getattr(model_config, f.name) for f in fields(model_config)})


def sequence_group(engine: TrainEngineConfig) -> SequenceGroup | None:
    """The ranks that this one shares rows out with; None where each has its own. Every rank must call it."""
    return SequenceGroup(engine.sequence_parallel) if engine.sequence_parallel > 1 else None


def _objective(
    model: UnifiedModel, config: Config, facts: dict, sequence: SequenceGroup | None = None
) -> UnifiedObjective:
    alignment: dict[str, Any] = {}
    if config.alignment:
        alignment = {
            "alignment": FeatureAlignment(model.config.width, held_features(facts)),
            "alignment_weight": config.alignment.weight,
            "alignment_layer": config.alignment.layer,
        }
    objective = UnifiedObjective(
        model,
        config.diffusion,
        **config.loss.model_dump(exclude={"task_weights"}),
        pixel_diffusion=config.pixel_diffusion,
        objectives=config.trained,
        sequence=sequence,
        **alignment,
    )
    model.checkpoint_activations = config.engine.activation_checkpointing
    return objective


def _engine(objective: UnifiedObjective, config: Config, ranks: int) -> Engine:
    def lr_scale(name: str) -> float:
        if is_text_parameter(name.removeprefix("model.")):
            return config.lr_scale.text
        # The projection starts at random, so that frozen it would tell hidden states nothing.
        return config.lr_scale.visual or (config.lr_scale.text if name.startswith("alignment.") else 0.0)

    together = config.engine.sequence_parallel
    passes = config.workers.passes(config.batch_rows, ranks, together)
    return Engine(
        objective,
        config.optimizer,
        config.engine,
        config.steps,
        micro_batch=-(-config.batch_rows // (ranks // together * passes)),
        accumulate=passes,
        lr_scale=lr_scale,
        part_of=part_of,
        compile_parts=objective.compile_parts,
    )


def _without_memory(config: UnifiedConfig) -> UnifiedModel:
    with torch.device("meta"):
        return UnifiedModel(config)


def _write_weights(engine: Engine, config: UnifiedConfig, file: Path) -> int:
    """The model's weights (EMA where kept) into a file of rank 0, one at a time, so that no rank holds a copy of them
    all; gives their number. Every rank must call it."""
    model = _without_memory(config)
    wanted = dict(sorted(stored_state(model).items()))
    weights = engine.tensors(names=[f"model.{name}" for name in wanted])
    named = ((name.removeprefix("model."), value) for name, value in weights)
    write_whole(file if dist.get_rank() == 0 else None, wanted, named)
    return sum(p.numel() for p in model.parameters())


def _save(folder: str, parameters: int, trainer: UnifiedTrainer, last: dict[str, float]) -> None:
    """`model/` and `report/` of the artifact, and the stage's metrics. `folder` has the model's weights."""
    job = trainer.job
    model = _without_memory(trainer.model_config)
    with_tokenizers(model, job.config, job.tokenizer, trainer.text, trainer.facts).save(folder)
    storage.copy_tree(folder, storage.join(job.output, "model"))
    trainer.history.save(storage.join(job.output, "report", "history.jsonl"))
    storage.write_json(storage.join(job.output, "report", "prompts.json"), {"captions": trainer.captions})
    validation = storage.read_json(storage.join(job.state, "validation.json")) or {}
    metrics = {"steps": job.config.steps, **validation, **last, "parameters": parameters}
    storage.write_json(storage.join(job.state, "metrics.json"), finite(metrics))
