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
    folder, `tracker` its MLflow run; `scorer` is the URI of the folder whose pictures' tower is taken where the config
    names no encoder, None also where steps are only timed."""

    config: Config
    model: AnyTokenizerConfig
    records: Artifact
    start_from: Artifact | None
    output: str
    state: str
    progress: Any  # a Progress, or a study's share of one
    tracker: Any
    scorer: str | None = None
