"""The config of curation: which steps there are, in their order, and what is held out for evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from omniloom.stages.base import PLACEMENT
from omniloom.stages.by_kind import any_of
from omniloom.stages.curate.steps.base import StepConfig
from omniloom.stages.curate.steps.table import STEPS, UNUSABLE
from omniloom.stages.ingest.config import Source
from omniloom.stages.ingest.options import Strict

if TYPE_CHECKING:
    AnyStep = StepConfig
else:
    AnyStep = any_of(STEPS, UNUSABLE)


class CurateConfig(Strict):
    """Steps that leave records out or change them, and what no record that is trained on may be a copy of."""

    steps: list[AnyStep] = Field(default_factory=list)
    """What is done, in this order. Each step sees what those before it leave."""
    evaluation_sources: list[str] = Field(default_factory=list)
    """Names of sources of ingest that models are judged by: all of their records lie in test, and no record of another
    source that is trained on may be a copy of one of them."""
    evaluation_sets: list[Source] = Field(default_factory=list)
    """Sources that are not part of the corpus and that models are judged by elsewhere, such as a benchmark's files: no
    record that is trained on may be a copy of one of theirs."""
    on_overlap: Literal["refuse", "drop"] = "refuse"
    """What happens where a record that is trained on is a copy of one that models are judged by: an error that names
    both files, or the record goes."""
    num_workers: int | None = Field(default=None, ge=1, json_schema_extra=PLACEMENT)
    """How many shards are worked on at once; by default as many as there are CPUs."""

    @model_validator(mode="after")
    def _has_effect(self) -> CurateConfig:
        if not (self.steps or self.evaluation_sources or self.evaluation_sets):
            raise ValueError("steps: expected at least one step, or evaluation_sources or evaluation_sets")
        if self.on_overlap != "refuse" and not (self.evaluation_sources or self.evaluation_sets):
            raise ValueError("on_overlap: goes with evaluation_sources or evaluation_sets")
        return self


Config = CurateConfig
