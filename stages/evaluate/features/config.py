"""Feature networks that `evaluate` measures with: where their files lie. None comes with the package."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

from omniloom.stages.base import path_to
from omniloom.stages.checkpoints.language_model import FILES

_FIELDS = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class LpipsConfig(BaseModel):
    """The two files of LPIPS (arXiv 1801.03924), version 0.1 with VGG-16."""

    model_config = _FIELDS
    vgg: str = Field(json_schema_extra=path_to("file"))
    """URI of VGG-16's weights under torchvision's names, .safetensors."""
    heads: str = Field(json_schema_extra=path_to("file"))
    """URI of the heads that go with it, .safetensors."""


class FeaturesConfig(BaseModel):
    """A network, and its figures are measured beside those that need none."""

    model_config = _FIELDS
    inception: str | None = Field(None, json_schema_extra=path_to("file"))
    """URI of Inception v3: .safetensors under torchvision's names, of the weights that FID is defined by
    (pt_inception-2015-12-05) or of torchvision's own, or a TorchScript file that takes uint8 pictures and
    `return_features`. Gives fid, kid, rfid, and precision, recall, density and coverage in its features."""
    dinov2: str | None = Field(None, json_schema_extra=path_to("folder", reads=FILES))
    """URI of a folder of DINOv2 as `transformers` saves one. Gives fd_dinov2, and precision, recall, density and
    coverage in its features."""
    clip: str | None = Field(None, json_schema_extra=path_to("folder", reads=FILES))
    """URI of a folder of CLIP or SigLIP as `transformers` saves one. Gives cmmd, and with a tower of texts
    clip_score."""
    i3d: str | None = Field(None, json_schema_extra=path_to("file"))
    """URI of I3D as a TorchScript file that takes `rescale`, `resize` and `return_features`. Gives fvd."""
    lpips: LpipsConfig | None = None
    """VGG-16 and the heads of LPIPS. Gives recon_lpips_image and recon_lpips_video."""
    kid_subsets: int = Field(100, ge=1)
    """Subsets that KID is the mean of."""
    kid_subset_size: int = Field(1000, ge=2)
    """Pictures of each side in a subset, all where there are fewer."""

    @model_validator(mode="after")
    def _names_one(self) -> FeaturesConfig:
        if not any((self.inception, self.dinov2, self.clip, self.i3d, self.lpips)):
            raise ValueError("names no network; give inception, dinov2, clip, i3d or lpips, or leave features out")
        if not self.inception and {"kid_subsets", "kid_subset_size"} & self.model_fields_set:
            raise ValueError(
                "kid_subsets and kid_subset_size have no effect without inception, which KID is measured by"
            )
        return self

    @property
    def networks(self) -> tuple[str, ...]:
        """The names of those that are given."""
        return tuple(name for name in ("inception", "dinov2", "clip", "i3d", "lpips") if getattr(self, name))
