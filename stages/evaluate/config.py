"""The configs of measuring: `MeasureConfig` of any trained model, `Config` of the stage `evaluate`."""

from __future__ import annotations

from pydantic import Field

from omniloom.stages.base import LATER, PLACEMENT
from omniloom.stages.evaluate.features.config import FeaturesConfig
from omniloom.stages.evaluate.gate import Gate
from omniloom.stages.evaluate.sweep_config import SamplingSweep
from omniloom.stages.inference.config import DrawingConfig


class MeasureConfig(DrawingConfig):
    """How a unified model is measured; `stages.studies.objectives` measures its models in the same way."""

    split: str = Field("test", pattern="^(validation|test)$")
    """Split to measure on; items are drawn from it by the seed, evenly over sources and labels."""
    drawings: int = Field(256, ge=0)
    """Pictures drawn from held-out captions."""
    captions: int = Field(256, ge=0)
    """Held-out pictures that are described."""
    counterfactuals: int = Field(64, ge=0)
    """Captions that are also drawn with another picture's in their place, from the same noise."""
    train_pictures: int = Field(20_000, ge=2)
    """Train pictures, drawn by the seed, that the classifier learns from, and that drawn and held-out ones are held
    against."""
    retrieval_captions: int = Field(100, ge=0)
    """Distinct captions of the split, its own among them, that each described picture is held against; below 2 nothing
    is ranked."""
    texts: int = Field(200, ge=0)
    """Held-out texts for bits per byte."""
    class_examples: int = Field(20, ge=2)
    """Train pictures a label needs to count as a class."""
    class_pixels: int = Field(8, ge=2)
    """Side of the shrunken pictures for the classifier, coverage and the Fréchet distance."""
    features: FeaturesConfig | None = Field(None, json_schema_extra=LATER)
    """Networks in whose features is measured too: FID, KID, FD-DINOv2, CMMD, LPIPS, FVD and others."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of the examples and of what is drawn."""
    cpus: float = Field(2, gt=0, json_schema_extra=PLACEMENT)
    """CPUs of the worker that measures."""
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT)
    """GPUs of the worker that measures."""


class EvaluateConfig(MeasureConfig):
    reconstructions: int = Field(256, ge=1)
    """Pictures, and as many videos, that are reconstructed."""
    videos: int = Field(64, ge=0)
    """Videos drawn from held-out captions and measured."""
    sweep: SamplingSweep | None = Field(None, json_schema_extra=LATER)
    """Settings of sampling that are held against each other; the chosen one becomes the model's own."""
    gate: Gate = Field(default_factory=Gate)
    """Bounds of figures, such as {caption_accuracy: {min: 0.9}, bits_per_byte: {max: 2.5}, better_than_champion:
    caption_accuracy}; the model gets the alias where all hold, and never without a gate."""
    alias: str = "champion"
    """Alias in the model registry of the model that passed the gate last."""

    @property
    def enters_fingerprint(self) -> dict[str, str]:
        """What counts in the fingerprint beside the fields: that a default was written down. It then holds for a model
        that has its own (`stages.inference.config.DrawingConfig.chosen`), and counts for others' as little as it
        did."""
        fields = type(self).model_fields
        written = sorted(name for name, value in self.chosen().items() if value == fields[name].default)
        return {"written": ", ".join(written)} if written else {}


Config = EvaluateConfig
