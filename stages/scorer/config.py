"""Configuration of `train_scorer`. Errors: pydantic's, and `ValueError` naming the field, where values do not fit each
other."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from omniloom.infra.training.config import EngineConfig, OptimizerConfig, WorkersConfig
from omniloom.models.scorer.config import ScorerConfig
from omniloom.models.scorer.losses_config import Loss
from omniloom.stages.base import PLACEMENT, path_to
from omniloom.stages.checkpoints.language_model import FILES


class TrainScorerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    model: ScorerConfig = Field(default_factory=ScorerConfig)
    """Sizes of a model that is trained from scratch."""
    pretrained: str | None = Field(None, json_schema_extra=path_to("folder", reads=FILES))
    """URI of the folder of a CLIP or a SigLIP, as `transformers` saves one, to start from in place of `model`; with
    `steps` 0 it is taken as it is."""
    loss: Loss = "clip"
    """What it is trained to: clip, the softmax over the batch with a learned temperature, or siglip, a sigmoid for each
    pair."""
    folds: int = Field(1, ge=1, le=16)
    """Above 1 so many scorers are trained at once, each on the train records outside its own fold, so that every record
    can be scored by one that has not seen it: what `recaption` needs."""
    batch: int = Field(256, ge=2)
    """Pairs of a picture and its caption a step, over all workers: each is held against all others."""
    steps: int = Field(2000, ge=0)
    """Steps of training. Of the validations the weights of the best are kept."""
    vocab_size: int = Field(2048, ge=262)
    """Tokens of the text tokenizer that is learnt from the captions."""
    flip: bool = False
    """Mirror half of the pictures; not for letters and digits, nor captions that say left and right."""
    jitter: float = Field(0.15, ge=0, le=0.5)
    """How far pictures are moved and zoomed at random, as a share of their side."""
    colour: float = Field(0.2, ge=0, le=1)
    """How far contrast and colours are changed at random, as a share of their range."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of weights, pairs and changes to pictures."""
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=0.1))
    """The optimizer."""
    engine: EngineConfig = Field(default_factory=EngineConfig)
    """Numerics and sharding."""
    workers: WorkersConfig = Field(default_factory=WorkersConfig, json_schema_extra=PLACEMENT)
    """Where the training runs."""
    validate_every: int = Field(100, ge=1)
    """Steps between validations, of which the best one's weights are kept."""
    retrieval_captions: int = Field(100, ge=2)
    """Distinct captions, its own among them, that a picture is held against."""
    cache_bytes: int = Field(1 << 30, ge=0, json_schema_extra=PLACEMENT)
    """Decoded pictures a worker keeps in memory."""

    @model_validator(mode="after")
    def _fits(self) -> TrainScorerConfig:
        if self.batch % self.workers.most:
            raise ValueError(f"batch: {self.batch} does not divide by workers.count {self.workers.most}")
        if self.workers.accumulate != 1:
            raise ValueError("workers.accumulate: every pair is held against the whole batch, expected 1")
        if not self.steps and not self.pretrained:
            raise ValueError("steps: expected at least 1: there is no pretrained model to take as it is")
        if not self.steps and self.folds > 1:
            raise ValueError("folds: expected 1: with steps 0 nothing is learnt from any record")
        if self.pretrained and "model" in self.model_fields_set:
            raise ValueError("model: the pretrained folder has its sizes with it, expected none")
        return self


Config = TrainScorerConfig
