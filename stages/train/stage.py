"""Stage `train`: one transformer that predicts the next text token and learns pictures by the objectives that are
chosen, on packed rows.

In: pretokenize's tokens and, for pictures, their tokenizer; what `init_from` names to start from; a step of an earlier
training where `continue_from` names one.
Out: `model/` (all that sampling needs, `models.model`), `ledger.json` (what it was given, `stages.train.ledger`),
`report/history.jsonl` (the curves), `report/samples.png` (validation captions, drawn; `samples_OBJECTIVE.png` by each
where there are several), and with `keep_checkpoint` `resume/` (the last checkpoint); `adapter/` for PEFT, where an
adapter was trained on a language model's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, within
from omniloom.infra.training import checkpoint
from omniloom.infra.training.launch import launch
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.checkpoints import start
from omniloom.stages.data.tokens import TokenSet
from omniloom.stages.train import continuing, fits
from omniloom.stages.train.config import (
    Config,
    check_adapter,
    expected_config,
    feature_dim,
    unified_config,
    visual_sizes,
)
from omniloom.stages.train.job import Job

VERSION = 4


def needs(config: Config) -> Needs:
    return Needs.of(config.workers)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """Check that the tokens hold what is trained on, as far as the configs of pretokenize and the tokenizer tell."""
    if config.trained and "tokenizer" not in upstream:
        raise InputError(
            f"{', '.join(config.trained)} needs a visual tokenizer; configure tokenizer_image and tokenizer_joint, or "
            "set objectives to {} for a language model alone",
            field="objectives",
        )
    tokens, tokenizer = upstream.get("tokens"), upstream.get("tokenizer")
    if tokens is None:
        return
    if config.alignment and not tokens.features:
        raise InputError(
            "needs a frozen encoder's features; set stages.pretokenize.features to its folder", field="alignment"
        )
    if config.init_from and not tokens.text_tokenizer:
        raise InputError(
            "the corpus must be in the ids of that folder; set stages.pretokenize.text_tokenizer to its "
            "tokenizer.json, or its text.json where it is a model of ours",
            field="init_from",
        )
    if config.init_from and not files:
        return
    if config.init_from:
        start.check_files(config.init_from, tokens.text_tokenizer)
    model = expected_config(config, tokens, tokenizer and tokenizer.model)
    if config.init_from and tokenizer and tokenizer.model:
        start.check_pictures(config.init_from, model, None)
    check_model(config, model)
    check_adapter(config, model)
    fits.check_kinds(config.packing, upstream.get("records"))
    fits.check_sources(config.packing, upstream.get("records"))
    fits.check_pictures(config.packing, config.trained, upstream)


def check_model(config: Config, model: UnifiedConfig) -> None:
    with within():
        config.check_model(model)


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    """Check that the corpus holds every kind that has a share of training."""
    fits.check_corpus(config.packing, config.trained, counts)


def work(job: Job) -> None:
    """One rank. What it needs is imported there alone: the stage's body, which waits for the ranks, loads no torch."""
    from omniloom.stages.train.worker import train_worker

    train_worker(job)


def run(context: StageContext, distillation: Distillation | None = None) -> dict:
    """`distillation`: of the model that the config starts from."""
    tokens, tokenizer = context.tokens, context.tokenizer
    check_tokens(context.config, tokens, tokenizer)
    left_out = left_out_of(context.config, tokens, context.progress)
    ledger, corpora = continuing.begin(context)
    checkpoint.check(context.state)
    places = context.output, context.state, context.progress, context.tracker
    job = Job(context.config, tokens, tokenizer, *places, ledger, corpora, distillation)
    launch(work, job, context.config.workers, f"{context.stage}-{context.fingerprint[:12]}", context.work)
    if context.config.keep_checkpoint:
        continuing.keep_checkpoint(context)
    metrics = storage.load_json(storage.join(context.state, "metrics.json"))
    return metrics | left_out | continuing.trained_before(ledger, corpora, context.progress)


def left_out_of(config: Config, tokens: Artifact, progress: Any) -> dict[str, int]:
    """Counts of the documents that are left out of training and of its validation, which are told; InputError where a
    kind that has a share has none that fits."""
    arguments = config.packing, config.objectives, config.seed
    rows = 0 if config.continue_from else config.steps * config.batch_rows
    left_out = fits.check_tokens(TokenSet(tokens, "train").index, *arguments, rows)
    if told := fits.told(left_out):
        progress.note(told)
    return left_out | fits.check_held_out(TokenSet(tokens, "validation").index, *arguments)


def check_tokens(config: Config, tokens: Artifact, tokenizer: Artifact | None) -> None:
    """Check that the tokens can be trained on, and are the tokenizer's; InputError where not."""
    facts = storage.load_json(tokens.file("tokens.json"))
    if tokenizer and facts["visual_digest"] != tokenizer.digest:
        raise InputError(
            f"the tokens were made by another tokenizer ({facts['visual_tokenizer'][:12]}) than "
            f"{tokenizer.stage} {tokenizer.fingerprint[:12]}; run pretokenize again",
            file=tokens.uri,
        )
    if config.init_from:
        start.check_text(config.init_from, facts["text_digest"])
    model = unified_config(config, facts["vocab_size"], visual_sizes(facts), facts["specials"])
    if config.init_from:
        start.check_pictures(config.init_from, model, tokenizer)
    feature_dim(config, facts)
    check_model(config, model)
    check_adapter(config, model)
