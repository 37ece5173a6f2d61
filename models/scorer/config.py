"""Shape of a scorer that is trained here: the two towers of a dual encoder, in CLIP's shape (arXiv 2103.00020).

Standard library only. Out: a `ClipConfig`. Errors: FieldError naming the field.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from omniloom.models.checks import STRICT_AND_DESCRIBED, require
from omniloom.models.features.clip_config import ClipConfig, TowerConfig

MAX_SCALE = 100.0  # of the temperature's inverse (arXiv 2103.00020, section 2.5)


@dataclass(frozen=True)
class ScorerConfig:
    """Two transformers of one width: one reads a square picture in patches, the other a caption."""

    __pydantic_config__: ClassVar = STRICT_AND_DESCRIBED

    image_size: int = 32
    """Side in pixels of the square that a picture is brought to."""
    patch_size: int = 4
    """Side in pixels of a patch."""
    width: int = 128
    """Width of both towers."""
    heads: int = 4
    """Attention heads of both towers."""
    layers: int = 4
    """Blocks of the pictures' tower."""
    text_layers: int = 2
    """Blocks of the texts' tower."""
    length: int = 48
    """The most tokens of a caption, its end included; longer ones are cut."""
    dim: int = 128
    """Numbers of an embedding."""

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "width", "heads", "layers", "text_layers", "dim"):
            require(getattr(self, name) >= 1, self, name, "at least 1")
        require(self.length >= 2, self, "length", "at least 2")
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width {self.width}")
        fits = self.image_size % self.patch_size == 0
        require(fits, self, "patch_size", f"a divisor of image_size {self.image_size}")

    def clip(self, vocab_size: int, eos: int) -> ClipConfig:
        """The model of these sizes for a vocabulary in which `eos` ends a text."""
        vision, text = (
            TowerConfig(self.width, layers, self.heads, 4 * self.width, "gelu", 1e-5)
            for layers in (self.layers, self.text_layers)
        )
        return ClipConfig(vision, self.image_size, self.patch_size, self.dim, text, vocab_size, self.length, eos)
