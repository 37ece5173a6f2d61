"""The body of each rank of `train_scorer`: it builds the folds' models, trains them side by side, and writes the best
weights of each with what they retrieve on the test split."""

from __future__ import annotations

import json
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from tokenizers import Tokenizer

from omniloom.infra import storage
from omniloom.infra.figures import finite
from omniloom.infra.training.loop import Loop
from omniloom.models.features.clip_config import clip_document
from omniloom.models.features.dual import logit_tensors
from omniloom.models.scorer.objective import ScorerObjective, fresh_clip
from omniloom.stages.checkpoints.clip_folder import WORDS
from omniloom.stages.checkpoints.dual_encoder import DualEncoder, load_dual_encoder
from omniloom.stages.checkpoints.scorer import FACTS, Scorer, as_one
from omniloom.stages.evaluate.intervals import intervals
from omniloom.stages.evaluate.items import values_of
from omniloom.stages.scorer import page
from omniloom.stages.scorer.job import END, Job
from omniloom.stages.scorer.pairs import HeldOut, PairBatches
from omniloom.stages.scorer.retrieval import distinct_captions, recall_at_1
from omniloom.stages.scorer.trainer import BEST, ScorerTrainer, best_weights, engine_for, fold_name

_HELD_OUT = 2000  # pictures of a split that are measured, at most


def assemble(job: Job) -> tuple[ScorerTrainer, PairBatches]:
    """What a rank trains with, before the first step."""
    config, rank, ranks = job.config, dist.get_rank(), dist.get_world_size()
    encoders = [encoder_of(job, fold) for fold in range(config.folds)]
    objectives = [ScorerObjective(encoder.model, config.loss, encoder.logits) for encoder in encoders]
    engines = {fold_name(f): engine_for(config, objective, ranks) for f, objective in enumerate(objectives)}
    side = encoders[0].side
    held_out = HeldOut.of(job.records, "validation", side, config.seed, _HELD_OUT)
    return ScorerTrainer(job, engines, encoders, held_out, rank), PairBatches(job.records, config, side, rank, ranks)


def train_worker(job: Job) -> None:
    """The body of one rank: needs a process group, knows nothing of Ray."""
    config, rank, last, history = job.config, dist.get_rank(), {}, None
    if config.steps:
        trainer, batches = assemble(job)
        loop = Loop(
            config.steps,
            config.workers,
            trainer,
            batches,
            job.state,
            job.progress,
            config.validate_every,
            validate_first=bool(config.pretrained),
            numerics=config.engine,
        )
        last, history = loop.run(), trainer.history
        last |= loop.guard.save(job.output) if rank == 0 else {}
    if rank == 0:
        job.progress.say("saving")
        _finish(job, last, history)
    dist.barrier()


def encoder_of(job: Job, fold: int) -> DualEncoder:
    """What the fold's training starts from, with a graph."""
    config = job.config
    if config.pretrained:
        encoder = load_dual_encoder(config.pretrained, "pretrained")
        encoder.model.requires_grad_(True)
        return encoder
    words = Tokenizer.from_str(storage.read_bytes(job.words).decode())
    torch.manual_seed(config.seed + fold)
    return DualEncoder(fresh_clip(config.model.clip(words.get_vocab_size(), cast(int, words.token_to_id(END)))), words)


def _finish(job: Job, last: dict[str, Any], history: Any) -> None:
    """The artifact and the stage's metrics."""
    config, encoders = job.config, []
    best = storage.read_json(storage.join(job.state, BEST)) or {}
    for fold in range(config.folds):
        encoder = encoder_of(job, fold)
        if config.steps:
            held = load(storage.read_bytes(best_weights(job.state, fold)))
            own = {key.removeprefix("clip."): value for key, value in held.items() if key.startswith("clip.")}
            encoder.model.load_state_dict(own)
            encoder.logits["logit_scale"] = float(held["log_scale"])
            if config.loss == "siglip":
                encoder.logits["logit_bias"] = float(held["bias"])
        encoder.model.requires_grad_(False)
        _save(job, fold, encoder)
        encoders.append(encoder)
    storage.write_json(storage.join(job.output, FACTS), {"folds": config.folds, "loss": config.loss, "best": best})
    metrics: dict[str, Any] = {"steps": config.steps, **last, **_measured(job, Scorer(encoders, ""))}
    metrics |= {f"best_step_{name}": row["step"] for name, row in best.items()}
    metrics["parameters"] = sum(p.numel() for encoder in encoders for p in encoder.model.parameters())
    if history:
        history.save(storage.join(job.output, "report", "history.jsonl"))
    html = page.render(config, metrics, history.rows if history else [])
    storage.write_bytes(storage.join(job.output, "report", "scorer.html"), html.encode())
    job.tracker.log_text(html, "scorer.html")
    storage.write_json(storage.join(job.state, "metrics.json"), finite(metrics))


def _save(job: Job, fold: int, encoder: DualEncoder) -> None:
    """A folder as `transformers` saves a CLIPModel or a SiglipModel, with its words."""
    target, model = storage.join(job.output, "scorer", str(fold)), encoder.model
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    weights |= logit_tensors(model.config, encoder.logits)
    storage.write_bytes(storage.join(target, "model.safetensors"), save(weights, {"format": "pt"}))
    document = json.dumps(clip_document(model.config), indent=2)
    storage.write_bytes(storage.join(target, "config.json"), document.encode())
    storage.write_bytes(storage.join(target, WORDS), storage.read_bytes(job.words))


def _measured(job: Job, scorer: Scorer) -> dict[str, Any]:
    """Retrieval on the test split, which had no say in what was kept; empty where it holds too few captions."""
    held = HeldOut.of(job.records, "test", scorer.side, job.config.seed, _HELD_OUT)
    distinct = distinct_captions(held.captions)
    if len(distinct) < 2:
        return {}
    pictures, texts = scorer.features(held.pictures()), scorer.texts(distinct)
    similarities = pictures @ as_one(texts).T
    found, count = recall_at_1(similarities, held.captions, distinct, job.config.retrieval_captions)
    items = {"recall_at_1": values_of(held.ids, found)}
    return {
        "recall_at_1": items["recall_at_1"].mean,
        **intervals(items, job.config.seed),
        "recall_at_1_chance": 1 / count,
        "retrieval_captions": count,
        "retrieval_pictures": len(found),
    }
