"""Optional stage `distill`: the trained model taught to draw in few steps, and without the second pass that guidance
takes.

In: tokens, their visual tokenizer, and the trained model, which is its teacher. Out: as of `train`, which trains it:
the same rows with other targets for the pictures that are drawn (`models.unified.objectives.distillation`). The folder
`model/` says how it is sampled, so that `evaluate`, `sample` and `serve` do so unasked. Texts, captions and pictures by
other objectives go on being trained as they were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from omniloom.infra.artifacts import Artifact
from omniloom.infra.errors import InputError
from omniloom.stages.base import Needs, StageContext
from omniloom.stages.distill.config import Config
from omniloom.stages.train import ledger
from omniloom.stages.train import stage as train
from omniloom.stages.train.config import TrainConfig, kept_config

VERSION = 1


def needs(config: Config) -> Needs:
    return Needs.of(getattr(config, "workers"))  # noqa: B009  # a field of `train`'s, which types do not know


def resolved(config: Config, upstream: Mapping[str, Any]) -> TrainConfig | None:
    """The training that it is."""
    teacher = upstream.get("model")
    return teacher and config.training(teacher)


def check(config: Config, upstream: Mapping[str, Any], files: bool = True) -> None:
    """Check that the model is a diffusion and can go on being trained as the config says."""
    if training := resolved(config, upstream):
        train.check(training, upstream, files)


def check_counts(config: Config, upstream: Mapping[str, Any], counts: Mapping[str, Any]) -> None:
    if training := resolved(config, upstream):
        train.check_counts(training, upstream, counts)


def run(context: StageContext) -> dict:
    config: Config = context.config
    training = training_of(config, context.model)
    return train.run(dataclasses.replace(context, config=training), config.distillation)


def training_of(config: Config, model: Artifact) -> TrainConfig:
    """The training that it is, of this model."""
    return config.training(teacher_of(model), model.file("model"))


def teacher_of(model: Artifact) -> TrainConfig:
    """The config that a model was trained by, as its ledger has it. InputError where it has none of ours."""
    known = ledger.read(model.uri)
    try:
        if known:
            return ledger.config_of(known["periods"][-1])
        return kept_config(model.manifest["config"])
    except ValidationError as error:
        raise InputError(f"was not made by a training that this version knows: {error}", file=model.uri) from None
