"""Stages `tokenizer_image`, `tokenizer_joint`, `tokenizer_kl`: adversarial training of the tokenizer, step by step.

In: records, where a stage before it makes one a tokenizer, whose weights it starts from, and where the config takes it
for a frozen encoder the scorer.
Out: `tokenizer/` (tokenizer.safetensors, config.json), `report/history.jsonl` (the curves), and
`report/reconstruction.png`.
The stages differ by config alone: which kinds they see, at which sizes, from which weights, with which bottleneck.
A TiTok may take two of them: one warms it up on the codes of the tokenizer before, the next teaches its decoder pixels.
Sources: OmniTokenizer, arXiv 2406.09399, section 3.3 (progressive training); TiTok, arXiv 2406.07550, section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omniloom.infra import storage
from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError, within
from omniloom.infra.training import checkpoint
from omniloom.infra.training.launch import launch
from omniloom.models.tokenizer.build import config_from_dict
from omniloom.models.tokenizer.vit_config import ViTConfig
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.checkpoints.outside import is_folder, require_folder_of_weights, require_weights
from omniloom.stages.checkpoints.picture_tokenizer import FIELD
from omniloom.stages.checkpoints.vision_encoder import encoder_config
from omniloom.stages.tokenizer.architecture import (
    architecture,
    check_alignment,
    expected_architecture,
    no_architecture,
    of_folder,
    scorer_shape,
)
from omniloom.stages.tokenizer.config import Config, KLConfig, NamedRAEConfig, check_fit, is_warm_up, scorer_field
from omniloom.stages.tokenizer.job import Job

__all__ = ["VERSION", "Config", "KLConfig", "check", "check_counts", "needs", "resolved", "run", "unread"]

VERSION = 6


def unread(config: Config) -> tuple[str, ...]:
    """A scorer is read where its pictures' tower is an encoder's, and else no stage waits for it."""
    return () if scorer_field(config) else ("scorer",)


def needs(config: Config) -> Needs:
    return Needs.of(config.workers)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """Check that there is an architecture to train, and that it fits the data; that of a released checkpoint's file is
    checked when the stage runs."""
    known = upstream.get("tokenizer")
    starts = bool(config.official) or "tokenizer" in upstream
    if not (starts or config.model):
        raise no_architecture()
    if config.train_only and not starts:
        raise InputError(
            "no stage before this one makes a tokenizer whose decoder could be trained; configure one, pin an "
            "artifact, or name a released one as `official`",
            field="train_only",
        )
    if is_warm_up(config.model) and not starts:
        raise InputError(
            "no stage before this one makes a tokenizer whose codes a warm-up could learn; configure one, pin an "
            "artifact, or name a released one as `official`",
            field="model.proxy_codes",
        )
    if (field := scorer_field(config)) and "scorer" not in upstream:
        raise _no_scorer(field)
    if not (starts or config.steps):
        raise InputError("expected at least 1: there is no tokenizer to take as it is", field="steps")
    kinds = getattr(upstream.get("records"), "kinds", None)
    for kind in config.data.kinds if config.steps else ():
        if kinds is not None and kind not in kinds:
            raise InputError(f"no source of stages.ingest.sources gives {kind}s", field="data.kinds")
    if files:
        _check_files(config)
    released = of_folder(config) if files else None
    if config.model or not config.official or released:
        scorer = scorer_shape(upstream.get("scorer")) if files else None
        model = expected_architecture(config, released or known and known.model, files, scorer)
        if model:
            with within():
                check_fit(model, config.data)
            if config.alignment:
                check_alignment(model)


def _no_scorer(field: str) -> InputError:
    return InputError(
        "is null, and no stage before this one trains a scorer to take; configure stages.train_scorer, pin an "
        "artifact, or name the folder of an encoder",
        field=field,
    )


def _check_files(config: Config) -> None:
    for field, uri in (
        ("official", config.official),
        ("perceptual.vgg", config.perceptual and config.perceptual.vgg),
        ("perceptual.heads", config.perceptual and config.perceptual.heads),
    ):
        if uri and field == FIELD and is_folder(uri, field):
            require_folder_of_weights(uri, field)
        elif uri:
            require_weights(uri, field)
    if isinstance(config.model, NamedRAEConfig) and config.model.encoder:
        require_folder_of_weights(config.model.encoder, "model.encoder")
    if config.alignment and config.alignment.encoder:
        require_folder_of_weights(config.alignment.encoder, "alignment.encoder")
        encoder_config(config.alignment.encoder, "alignment.encoder")


def resolved(config: Config, upstream: Mapping[str, Any]) -> Config:
    """With the architecture that is trained as `model`; None where only a file tells that."""
    known = upstream.get("tokenizer")
    released = of_folder(config)
    told = config.model or not config.official or released
    scorer = scorer_shape(upstream.get("scorer"))
    model = expected_architecture(config, released or known and known.model, scorer=scorer) if told else None
    return config.model_copy(update={"model": model, "quantizer": None, "official": None})


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> Iterator[str]:
    """Check that the corpus holds the kinds to train on; a warning where there are fewer clips than a step takes."""
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


def work(job: Job) -> None:
    """One rank. What it needs is imported there alone: the stage's body, which waits for the ranks, loads no torch."""
    from omniloom.stages.tokenizer.worker import train_worker

    train_worker(job)


def job_of(
    config: Config, records: Artifact, tokenizer: Artifact | None, *where: Any, scorer: Artifact | None = None
) -> Job:
    """What the ranks are given: the config with the architecture that it trains, from the tokenizer before where it
    starts from that; `where` are output, state, progress and tracker. Of a scorer's folds the first is taken."""
    start_from, known = None if config.official else tokenizer, None
    if start_from:
        file = start_from.file("tokenizer", "config.json")
        known = config_from_dict(storage.load_json(file), file)
    folder: str | None = None
    shape: ViTConfig | None = None
    if field := scorer_field(config):
        if scorer is None:
            raise _no_scorer(field)
        folder = scorer.file("scorer", "0")
        shape = encoder_config(folder, field)
    model = architecture(config, known, shape)
    with within():
        check_fit(model, config.data)
    if config.alignment:
        check_alignment(model)
    output, state, progress, tracker = where
    return Job(config, model, records, start_from, output, state, progress, tracker, scorer=folder)


def run(context: StageContext) -> dict:
    config: Config = context.config
    checkpoint.check(context.state)
    where = context.output, context.state, context.progress, context.tracker
    job = job_of(config, context.records, context.tokenizer, *where, scorer=context.inputs.get("scorer"))
    launch(work, job, config.workers, f"{context.stage}-{context.fingerprint[:12]}", context.work)
    return storage.load_json(storage.join(context.state, "metrics.json"))
