"""The argument of each rank of a scorer's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omniloom.infra.artifacts import Artifact
from omniloom.stages.scorer.config import Config

END = "<end>"  # behind every caption


@dataclass
class Job:
    """Picklable. `words` is the URI of the text tokenizer; `output` and `state` are URIs of the stage's work folder,
    `tracker` its MLflow run."""

    config: Config
    records: Artifact
    words: str
    output: str
    state: str
    progress: Any
    tracker: Any
