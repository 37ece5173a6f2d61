"""Binary spherical quantization (BSQ, arXiv 2406.07548) as a kind of quantizer of OmniLoom: its options and its row of
the table. Every plan imports this module, so torch is imported by `bsq_module` alone, when a tokenizer is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omniloom.models.checks import require
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig, QuantizerKind


@dataclass(frozen=True)
class BSQConfig(QuantizerConfig):
    """Binary spherical quantization: a bit a channel on the unit sphere, 2^bits codes, no codebook."""

    kind: Literal["bsq"] = "bsq"
    """The kind of quantizer."""
    bits: int = 12
    """Channels of the latents, a bit each; from 2 to 24."""
    inverse_temperature: float = 100.0
    """How sharply a token's distribution over codes falls with the distance."""
    entropy_weight: float = 0.1
    """Weight of the mean entropy of a token's code less `entropy_gamma` times the entropy of the mean, in nats."""
    entropy_gamma: float = 1.0
    """Weight of the entropy of the tokens' mean distribution within that term."""
    commitment: float = 0.25
    """Weight of the pull of the latents towards their code."""
    restart_dead_after: float = 16.0
    """A code counts as dead that went unused while the average code was used this many times; for the log."""

    def __post_init__(self) -> None:
        require(2 <= self.bits <= 24, self, "bits", "an integer from 2 to 24")
        require(self.inverse_temperature > 0, self, "inverse_temperature", "a number above 0")
        for name in ("entropy_weight", "entropy_gamma", "commitment", "restart_dead_after"):
            require(getattr(self, name) >= 0, self, name, "a number of at least 0")

    @property
    def dim(self) -> int:
        return self.bits

    @property
    def size(self) -> int:
        return 2**self.bits


KIND = QuantizerKind("bsq", BSQConfig, "bsq_module:BinarySphericalQuantizer")
