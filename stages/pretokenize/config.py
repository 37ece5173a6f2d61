"""The config of stage `pretokenize`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from omniloom.stages.base import PLACEMENT, path_to
from omniloom.stages.checkpoints.language_model import FILES
from omniloom.stages.checkpoints.text_tokenizer import CONFIGS
from omniloom.stages.data.aspects import check_names

FEATURES = "features"  # the field that names the frozen encoder


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    image_size: int = Field(256, ge=1, description="pixels a side of the square that images have as many pixels as")
    video_size: int = Field(256, ge=1, description="likewise of videos")
    aspects: tuple[str, ...] = Field(
        ("1:1",), min_length=1, description="ratios, width:height; images and videos are cut to the nearest"
    )
    frames: int = Field(17, ge=1, description="frames of a video, evenly spaced; 1 modulo the temporal patch")
    vocab_size: int = Field(32_000, ge=262, description="size of the byte-level BPE that is trained on the corpus")
    text_tokenizer: str | None = Field(
        None,
        json_schema_extra=path_to("file", beside=CONFIGS),
        description="URI of a tokenizer.json to use in place of training one",
    )
    pixel_patch: int | None = Field(
        None,
        ge=1,
        description="side of the patches in which raw pixels are kept as well, for pixel_diffusion; null keeps none",
    )
    features: str | None = Field(
        None,
        json_schema_extra=path_to("folder", reads=FILES),
        description="URI of a folder of SigLIP or DINOv2 as transformers saves one: "
        "its patch features are kept as well, to align hidden states with; null keeps none",
    )
    precision: str = Field("fp32", pattern="^(fp32|bf16)$")
    batch_size: int = Field(64, ge=1, json_schema_extra=PLACEMENT, description="images a forward pass")
    workers: int = Field(2, ge=1, json_schema_extra=PLACEMENT, description="actors")
    cpus: float = Field(1, gt=0, json_schema_extra=PLACEMENT, description="CPUs of an actor")
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT, description="GPUs of an actor")

    @field_validator("aspects")
    @classmethod
    def _ratios(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(aspects)
