"""The argument of each rank of the unified model's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omniloom.infra.artifacts import Artifact
from omniloom.models.unified.objectives.distillation_config import Distillation
from omniloom.stages.train.config import Config


@dataclass
class Job:
    """Picklable. `output` and `state` are URIs of the stage's work folder, `tracker` its MLflow run."""

    config: Config
    tokens: Artifact
    tokenizer: Artifact | None  # of pictures; none in a pipeline of text alone
    output: str
    state: str
    progress: Any  # a Progress, or a study's share of one
    tracker: Any
    ledger: dict | None = None  # of a training that was changed on the way, with the tokens of its periods
    corpora: tuple[Artifact, ...] = ()
    distillation: Distillation | None = None  # of the model that `config.init_from` names, its teacher
