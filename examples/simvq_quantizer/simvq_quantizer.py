"""SimVQ (arXiv 2411.02038) as a kind of quantizer of OmniLoom: its options and its row of the table. Every plan imports
this module, so torch is imported by `simvq_module` alone, when a tokenizer is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omniloom.models.checks import require
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig, QuantizerKind


@dataclass(frozen=True)
class SimVQConfig(QuantizerConfig):
    """Vector quantization with frozen random codes and one trained matrix that they all pass through."""

    kind: Literal["simvq"] = "simvq"
    """The kind of quantizer."""
    codebook_size: int = 8192
    """Number of codes."""
    latent_dim: int = 8
    """Channels of a code."""
    codebook_weight: float = 1.0
    """Weight of the pull of the codes towards the latents, which trains the matrix."""
    commitment: float = 0.25
    """Weight of the pull of the latents towards their code."""
    restart_dead_after: float = 16.0
    """A code counts as dead that went unused while the average code was used this many times; for the log."""

    def __post_init__(self) -> None:
        for name in ("codebook_size", "latent_dim"):
            require(getattr(self, name) >= 2, self, name, "an integer of at least 2")
        for name in ("codebook_weight", "commitment", "restart_dead_after"):
            require(getattr(self, name) >= 0, self, name, "a number of at least 0")

    @property
    def dim(self) -> int:
        return self.latent_dim

    @property
    def size(self) -> int:
        return self.codebook_size


KIND = QuantizerKind("simvq", SimVQConfig, "simvq_module:SimVectorQuantizer")
