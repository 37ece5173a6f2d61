"""The argument of each rank of a tokenizer's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omniloom.infra.artifacts import Artifact
from omniloom.models.tokenizer.build import AnyTokenizerConfig
from omniloom.stages.tokenizer.config import Config


@dataclass
class Job:
    """Picklable. `start_from` is the tokenizer of the stage before; `output` and `state` are URIs of the stage's work
    folder, `tracker` its MLflow run."""

    config: Config
    model: AnyTokenizerConfig
    records: Artifact
    start_from: Artifact | None
    output: str
    state: str
    progress: Any  # a Progress, or a study's share of one
    tracker: Any
