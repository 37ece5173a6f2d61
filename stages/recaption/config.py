"""Configuration of `recaption`. Errors: pydantic's, and `ValueError` naming the field."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from omniloom.stages.base import PLACEMENT, path_to
from omniloom.stages.checkpoints.language_model import FILES


class RecaptionConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    model: str | None = Field(None, json_schema_extra=path_to("folder", reads=FILES))
    """Path or URI of a train artifact or its model folder, which writes a caption for every picture; null: captions are
    filtered and none is written."""
    threshold: float | None = None
    """The score below which a caption goes, in nats that the picture says for it; null: from the distribution of the
    scores."""
    uncaptioned: Literal["keep", "leave_out"] = "keep"
    """Whether a picture of which no caption is left stays without one, or goes."""
    captions: int = Field(1, ge=1, le=16)
    """Captions that the model writes for a picture, of which the best is taken."""
    temperature: float = Field(1.0, gt=0)
    """Of what the model writes."""
    top_p: float = Field(0.9, gt=0, le=1)
    """The model draws a token among the likeliest that have this probability together (nucleus sampling)."""
    max_tokens: int = Field(32, ge=1)
    """The most tokens of a caption that it writes."""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """Of what the model writes, and of the captions that scores are held against."""
    cpus: float = Field(2, gt=0, json_schema_extra=PLACEMENT)
    """CPUs of the worker."""
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT)
    """GPUs of the worker."""

    @field_validator("model")
    @classmethod
    def _is_a_place(cls, model: str | None) -> str | None:
        if model and model.startswith("models:/"):
            raise ValueError(
                "expected a folder's path or URI, got a model of the registry; name its train artifact, "
                "STORAGE/artifacts/train/FINGERPRINT, by the version's tag omniloom.fingerprint"
            )
        return model


Config = RecaptionConfig
