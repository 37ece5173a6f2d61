"""Configuration of the bottleneck: a frozen dataclass, standard library only.

Errors: `ValueError` naming the field, what was given and what was expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from models.tokenizer.checks import require


@dataclass(frozen=True)
class QuantizerConfig:
    """The bottleneck between encoder and decoder.

    kind: `vq` (codebook on the unit sphere, kept by exponential moving averages), `fsq` (finite scalar
        quantisation, arXiv 2309.15505) or `kl` (a Gaussian posterior, continuous latents only).
    codebook_size, latent_dim: of `vq`; `kl` uses latent_dim alone; `fsq` takes both from `fsq_levels`.
    commitment: weight of the pull of the latents towards their code; of `fsq`, of the pull out of saturation.
    rotation_trick: gradients pass the code by a rotation and rescaling (arXiv 2410.06424), not straight
        through.
    kmeans_iterations: rounds of Lloyd's algorithm on the first batch; 0 takes vectors of that batch as codes.
    restart_dead_after: a code that went unused while the average code was used this many times is moved onto
        a latent of the current batch; 0 never restarts. Counted in mean uses, so the batch size does not
        matter.
    kl_weight: of the divergence summed over an example's latents and averaged over examples.
    """

    kind: Literal["vq", "fsq", "kl"] = "vq"
    codebook_size: int = 8192
    latent_dim: int = 8
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    ema_decay: float = 0.99
    commitment: float = 0.25
    rotation_trick: bool = True
    kmeans_iterations: int = 10
    restart_dead_after: float = 16.0
    kl_weight: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "fsq_levels", tuple(self.fsq_levels))  # YAML gives a list
        require(self.kind in ("vq", "fsq", "kl"), self, "kind", "one of vq, fsq, kl")
        require(self.codebook_size >= 2, self, "codebook_size", "at least 2")
        require(self.latent_dim >= 2, self, "latent_dim", "at least 2")
        levels_ok = len(self.fsq_levels) >= 1 and all(level >= 3 for level in self.fsq_levels)
        require(levels_ok, self, "fsq_levels", "one or more integers of at least 3")
        require(0.0 <= self.ema_decay < 1.0, self, "ema_decay", "a number in [0, 1)")
        require(self.commitment >= 0.0, self, "commitment", "a number of at least 0")
        require(self.kmeans_iterations >= 0, self, "kmeans_iterations", "an integer of at least 0")
        require(self.restart_dead_after >= 0.0, self, "restart_dead_after", "a number of at least 0")
        require(self.kl_weight >= 0.0, self, "kl_weight", "a number of at least 0")

    @property
    def dim(self) -> int:
        """Channels of the latents that this quantizer hands to the decoder."""
        return len(self.fsq_levels) if self.kind == "fsq" else self.latent_dim

    @property
    def size(self) -> int | None:
        """How many codes there are; None where the latents are continuous."""
        if self.kind == "kl":
            return None
        return math.prod(self.fsq_levels) if self.kind == "fsq" else self.codebook_size
