"""The body of each rank of stage `train`: it builds the model, trains it, and saves what sampling needs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

from omniloom.infra import integrity, storage
from omniloom.infra.artifacts import WRITTEN
from omniloom.infra.figures import finite
from omniloom.infra.secrets import redact_uris
from omniloom.infra.training.engine import Engine
from omniloom.infra.training.loop import Loop
from omniloom.infra.training.sequence import SequenceGroup
from omniloom.infra.training.shards import gathered
from omniloom.infra.training.tensors import write_whole
from omniloom.models.folder import stored_state
from omniloom.models.meta import without_memory
from omniloom.models.text import TextTokenizer
from omniloom.models.unified import mup
from omniloom.models.unified.adapter import lora, peft
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.llama.load import is_text_parameter, load_llama, new_rows
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.objectives.alignment import FeatureAlignment
from omniloom.models.unified.objectives.distillation import DistilledObjective
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.models.unified.objectives.objective import UnifiedObjective, part_of
from omniloom.models.unified.own_start import load_own
from omniloom.stages.checkpoints import start
from omniloom.stages.checkpoints.language_model import local_folder
from omniloom.stages.checkpoints.own_model import model_folder, own_config
from omniloom.stages.checkpoints.text_tokenizer import read_text_tokenizer
from omniloom.stages.data.books import Books
from omniloom.stages.data.index import Index
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.train import ledger
from omniloom.stages.train.config import Config, TrainEngineConfig, held_features, unified_config, visual_sizes
from omniloom.stages.train.job import Job
from omniloom.stages.train.memory import device_memory, needs_room
from omniloom.stages.train.rows import RowLoader
from omniloom.stages.train.samples import with_tokenizers
from omniloom.stages.train.trainer import UnifiedTrainer


def assemble(job: Job) -> tuple[Engine, UnifiedTrainer, RowLoader]:
    """What a rank trains with, before the first step."""
    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    tokens, held_out = (TokenSet(job.tokens, split, config.cache_bytes) for split in ("train", "validation"))
    text = TextTokenizer.load(tokens.text_json)
    model_config = unified_config(config, text.vocab_size, visual_sizes(tokens.facts), text.specials)
    for split in (tokens, held_out):
        split.facts |= _statistics(job) | start.latent_statistics(config.init_from, model_config)
    torch.manual_seed(config.seed)
    told = replace(model_config, step_sizes=True) if job.distillation and job.distillation.tells_steps else model_config
    model, new_tokens = _model(config, told)
    if config.adapter:
        lora.attach(model, config.adapter, new_tokens)
    objective = objective_of(
        model, config, tokens.facts, sequence_group(config.engine), job.distillation, _teacher(job, model_config)
    )
    engine = engine_of(objective, config, ranks)
    books, earlier = _books(job, tokens)
    trainer = UnifiedTrainer(job, engine, text, held_out, rank, ranks, earlier)
    hooks = objective.draw_ahead, objective.beside
    loader = RowLoader(tokens, model.config, config, rank, ranks, engine.device.type, books, *hooks)
    return engine, trainer, loader


def _statistics(job: Job) -> dict[str, Any]:
    """Mean and deviation of latents as the weights of a training that goes on have learnt them: the first tokens'."""
    first = job.ledger["periods"][0]["tokens"] if job.ledger else {}
    return {name: first[name] for name in ("latent_mean", "latent_std") if name in first}


def _books(job: Job, tokens: TokenSet) -> tuple[Books | None, list[Index]]:
    """The books of a training that goes on from another, and the indices of what that one had to train on."""
    if job.ledger is None or len(job.ledger["periods"]) == 1:
        return None, []
    indices = [TokenSet(artifact, "train").index for artifact in job.corpora[:-1]] + [tokens.index]
    return ledger.open_books(job.ledger, indices), ledger.earlier(job.ledger, indices)


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
            if job.ledger:
                closed = ledger.closed(job.ledger, config.steps, loader.position, loop.guard.bad.state["found"])
                storage.write_json(storage.join(job.output, ledger.FILE), closed)
    _write_adapter(engine, job, trainer.model_config)
    dist.barrier()


def _model(config: Config, model_config: UnifiedConfig) -> tuple[UnifiedModel, Sequence[int]]:
    """The model before its first step, and the tokens that its start did not know. Under ZeRO-3, which divides rank
    0's, it is without memory on the others."""
    if config.engine.zero_stage < 3:
        return _start(config, model_config)
    made = _start(config, model_config) if dist.get_rank() == 0 else None
    shape, new_tokens = gathered(made and (made[0].config, made[1]))[0]
    return made or (without_memory(UnifiedModel, shape), new_tokens)


def _start(config: Config, model_config: UnifiedConfig) -> tuple[UnifiedModel, Sequence[int]]:
    """The model before its first step: new, or with the weights of what the config names; and the tokens that this did
    not know. A checkpoint may hold a head of its own where its config says that it is tied; the model's config then
    says so."""
    if not config.init_from:
        return UnifiedModel(model_config), ()
    if own := model_folder(config.init_from):
        return load_own(local_folder(own), own_config(own), model_config), ()
    folder = local_folder(config.init_from)
    added = read_text_tokenizer(str(folder / "tokenizer.json")).added
    model = load_llama(
        folder, new_tokens=added, **{f.name: getattr(model_config, f.name) for f in fields(model_config)}
    )
    known = start.known_config(config.init_from).vocab_size
    return model, new_rows(known, model.config.vocab_size, added)


def sequence_group(engine: TrainEngineConfig) -> SequenceGroup | None:
    """The ranks that this one shares rows out with; None where each has its own. Every rank must call it."""
    return SequenceGroup(engine.sequence_parallel) if engine.sequence_parallel > 1 else None


def _teacher(job: Job, model_config: UnifiedConfig) -> UnifiedModel | None:
    """What is distilled, whole on every rank; None where nothing is."""
    return _start(job.config, model_config)[0] if job.distillation else None


def objective_of(
    model: UnifiedModel,
    config: Config,
    facts: dict,
    sequence: SequenceGroup | None = None,
    distillation: Distillation | None = None,
    teacher: UnifiedModel | None = None,
) -> UnifiedObjective:
    distilled: dict[str, Any] = {"teacher": teacher, "distillation": distillation} if distillation else {}
    alignment: dict[str, Any] = {}
    if config.alignment:
        alignment = {
            "alignment": FeatureAlignment(
                model.config.width, held_features(facts), factor=mup.logits_factor(model.config)
            ),
            "alignment_weight": config.alignment.weight,
            "alignment_layer": config.alignment.layer,
        }
    objective = (DistilledObjective if distillation else UnifiedObjective)(
        model,
        config.diffusion,
        **config.loss.model_dump(exclude={"task_weights"}),
        pixel_diffusion=config.pixel_diffusion,
        objectives=config.trained,
        sequence=sequence,
        **alignment,
        **distilled,
    )
    model.checkpoint_activations = _blocks_again(config, model.config, distillation)
    return objective


def _blocks_again(config: Config, shape: UnifiedConfig, distillation: Distillation | None) -> bool:
    """Whether blocks are computed again in the backward pass: on all ranks, where one has no room to keep them."""
    if config.engine.activation_checkpointing != "auto":
        return config.engine.activation_checkpointing
    memory = device_memory(bool(config.workers.gpus))
    mine = needs_room(config, shape, dist.get_world_size(), memory, distillation)
    return any(gathered(mine))


def engine_of(objective: UnifiedObjective, config: Config, ranks: int) -> Engine:
    trains = _trains(config, objective.model.config)

    def lr_scale(name: str) -> float:
        if not trains(name):
            return 0.0
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
        rate_factor=_rate_factor(objective.model.config),
        part_of=part_of,
        is_in_block=lambda name: part_of(name) == "backbone",
        compile_parts=objective.compile_parts,
        frozen_from=_frozen_from(config),
    )


def _rate_factor(model: UnifiedConfig) -> Callable[[str], float]:
    """muP's factor of the learning rate of a parameter of the objective, by name."""
    found = without_memory(UnifiedModel, model).mup_factors() if model.mup else {}
    return lambda name: found.get(name.removeprefix("model."), mup.Factors()).rate


def _frozen_from(config: Config) -> str | None:
    """A digest of the weights that an adapter is trained on, as rank 0 reads them; None without an adapter."""
    if not (config.adapter and config.init_from):
        return None
    return gathered(start.weights_digest(config.init_from) if dist.get_rank() == 0 else None)[0]


def _trains(config: Config, model_config: UnifiedConfig) -> Callable[[str], bool]:
    """Whether the training may change a parameter of its objective, by name: with an adapter, what that says."""
    if not (config.adapter and config.init_from):
        return lambda name: True
    of_model = lora.trains(config.adapter, model_config, start.known_config(config.init_from, model_config))
    return lambda name: not name.startswith("model.") or of_model(name.removeprefix("model."))


def _write_weights(engine: Engine, config: UnifiedConfig, file: Path) -> int:
    """The model's weights (EMA where kept), adapters merged, into a file of rank 0, one at a time, so that no rank
    holds a copy of them all; gives their number. Every rank must call it."""
    model = without_memory(UnifiedModel, config)
    wanted = dict(sorted(stored_state(model).items()))
    added = lora.additions(cast(UnifiedObjective, engine.module).model)
    weights = engine.tensors(names=[f"model.{name}" for name in lora.wanted(wanted, added)])
    named = ((name.removeprefix("model."), value) for name, value in weights)
    write_whole(file if dist.get_rank() == 0 else None, wanted, lora.merged(named, added))
    return sum(p.numel() for p in model.parameters())


def _write_adapter(engine: Engine, job: Job, config: UnifiedConfig) -> None:
    """`adapter/` of the artifact: where training started from a language model's folder, what was trained of it, for
    others that have the folder. Every rank must call it."""
    adapter, base = job.config.adapter, job.config.init_from
    if not (adapter and base) or model_folder(base) or not peft.is_whole(adapter, config):
        return
    names = [name for name, _ in engine.module.named_parameters() if ".adapters." in name]
    found = {name.removeprefix("model."): value for name, value in engine.tensors(names=names) if value is not None}
    if dist.get_rank() == 0:
        with tempfile.TemporaryDirectory() as folder:
            peft.write(Path(folder), adapter, config, found, redact_uris(base), start.names_of(base))
            storage.copy_tree(folder, storage.join(job.output, "adapter"))


def _save(folder: str, parameters: int, trainer: UnifiedTrainer, last: dict[str, float]) -> None:
    """`model/` and `report/` of the artifact, and the stage's metrics. `folder` has the model's weights."""
    job = trainer.job
    model = without_memory(UnifiedModel, trainer.model_config)
    with_tokenizers(model, job, trainer.text, trainer.facts).save(folder)
    storage.copy_tree(folder, storage.join(job.output, "model"))
    # Known from the local files: what lies in a store need not be read back to be published.
    written = {f"model/{file['path']}": file for file in integrity.describe(folder)}
    storage.write_json(storage.join(job.state, WRITTEN), written)
    trainer.history.save(storage.join(job.output, "report", "history.jsonl"))
    storage.write_json(storage.join(job.output, "report", "prompts.json"), {"captions": trainer.captions})
    validation = storage.read_json(storage.join(job.state, "validation.json")) or {}
    metrics = {"steps": job.config.steps, **validation, **last, "parameters": parameters}
    storage.write_json(storage.join(job.state, "metrics.json"), finite(metrics))
