"""The config of the stage `latents`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from omniloom.stages.base import PLACEMENT, path_to


class LatentsConfig(BaseModel):
    """On which pictures a tokenizer's latents are measured."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    size: int = Field(ge=8)
    """Pixels a side of the squares that pictures are brought to; as `pretokenize.image_size`."""
    split: str = Field("validation", pattern="^(validation|test)$")
    """Split of the pictures that figures are of. What a tokenizer is chosen by should not be what the generator is
    judged on."""
    pictures: int = Field(1000, ge=100)
    """Pictures of it, drawn by the seed, evenly over sources and labels."""
    train_pictures: int = Field(4000, ge=100)
    """Train pictures that the linear probe of labels learns from."""
    pixels: int = Field(8, ge=2)
    """Side of the shrunken pictures that Fréchet distances are of, where no network is given."""
    inception: str | None = Field(None, json_schema_extra=path_to("file"))
    """URI of Inception v3, as `evaluate.features.inception`: Fréchet distances are in its features then."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Seed of the pictures and of all noise."""
    cpus: float = Field(2, gt=0, json_schema_extra=PLACEMENT)
    """CPUs of the worker that measures."""
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT)
    """GPUs of the worker that measures."""


Config = LatentsConfig
