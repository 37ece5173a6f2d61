"""The config of stage `pretokenize`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from omniloom.stages.base import PLACEMENT, path_to
from omniloom.stages.checkpoints.language_model import FILES
from omniloom.stages.checkpoints.text_tokenizer import CONFIGS
from omniloom.stages.data.aspects import check_names
from omniloom.stages.retrain import NEVER, Retrain

FEATURES = "features"  # the field that names the frozen encoder


class PretokenizeConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    image_size: int = Field(256, ge=1)
    """Pixels a side of the square that images have as many pixels as."""
    video_size: int = Field(256, ge=1)
    """Likewise of videos."""
    aspects: tuple[str, ...] = Field(("1:1",), min_length=1)
    """Ratios, width:height; images and videos are cut to the nearest."""
    frames: int = Field(17, ge=1)
    """Frames of a video, evenly spaced; 1 modulo the temporal patch."""
    vocab_size: int = Field(32000, ge=262)
    """Size of the byte-level BPE that is trained on the corpus."""
    text_tokenizer: str | None = Field(None, json_schema_extra=path_to("file", beside=CONFIGS))
    """URI of a tokenizer.json to use in place of training one."""
    retrain: Retrain = "never"
    """Likewise of the BPE when the corpus has grown: never keeps the one of the last run, always trains it again,
    `when_changed_by 20%` trains it again where more than that of the corpus is new, or gone."""
    pixel_patch: int | None = Field(None, ge=1)
    """Side of the patches in which raw pixels are kept as well, for pixel_diffusion; null keeps none."""
    features: str | None = Field(None, json_schema_extra=path_to("folder", reads=FILES))
    """URI of a folder of SigLIP or DINOv2 as transformers saves one: its patch features are kept as well, to align
    hidden states with; null keeps none."""
    precision: str = Field("fp32", pattern="^(fp32|bf16)$")
    """Arithmetic of the visual tokenizer."""
    latents: str = Field("fp32", pattern="^(fp32|bf16)$")
    """What latents are kept in; bf16 takes half the room, at 8 bits of precision."""
    log_variances: bool = False
    """Of a KL tokenizer, whether the log-variances of its latents are kept beside their means: training then draws the
    latents of a picture anew each time it sees it."""
    batch_size: int | None = Field(None, ge=1, json_schema_extra=PLACEMENT)
    """Images a forward pass, or frames of videos; null: 64 on a GPU, 16 on CPUs."""
    workers: int | None = Field(None, ge=1, json_schema_extra=PLACEMENT)
    """Actors; null: as many as the cluster has GPUs for, or CPUs where they take no GPU."""
    cpus: float = Field(1, gt=0, json_schema_extra=PLACEMENT)
    """CPUs of an actor: threads that decode ahead of the device, and that text is tokenized in."""
    gpus: float = Field(0, ge=0, json_schema_extra=PLACEMENT)
    """GPUs of an actor."""

    @field_validator("aspects")
    @classmethod
    def _ratios(cls, aspects: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(aspects)

    @model_validator(mode="after")
    def _trains_what_it_retrains(self) -> PretokenizeConfig:
        if self.text_tokenizer and self.retrain != NEVER:
            raise ValueError("retrain: goes with a BPE that is trained here, expected no text_tokenizer")
        return self


Config = PretokenizeConfig
