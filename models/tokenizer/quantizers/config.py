"""Configuration of the bottleneck: a frozen dataclass, standard library only.

Errors: `ValueError` naming the field, what was given and what was expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from omniloom.models.tokenizer.checks import require

KINDS = ("vq", "fsq", "lfq", "gumbel", "kl")
MAX_LFQ_SIZE = 2**20


@dataclass(frozen=True)
class QuantizerConfig:
    """The bottleneck between encoder and decoder.

    kind: `vq` (codebook on the unit sphere), `fsq` (finite scalar quantisation, arXiv 2309.15505), `lfq`
        (lookup-free, one bit a channel, arXiv 2310.05737), `gumbel` (Gumbel-softmax over a codebook, the
        dVAE's, arXiv 2102.12092) or `kl` (a Gaussian posterior, continuous latents only).
    codebook_size: of `vq`, `gumbel` and `lfq`, there a power of two; `fsq` takes it from `fsq_levels`.
    latent_dim: of `vq`, `gumbel` and `kl`; `fsq` has a channel a level, `lfq` a channel a bit.
    commitment: weight of the pull of the latents towards their code; of `fsq`, of the pull out of saturation.
    restart_dead_after: a code counts as dead that went unused while the average code was used this many
        times (mean uses, so that the batch size does not matter; 0: 16). `vq` moves dead codes onto latents
        of the current batch, but for 0; with the other kinds they are only logged.

    Of `vq`:
    codebook: learned as moving averages of the latents (`ema`, with `ema_decay`), or by `gradient` descent on
        the codebook loss (arXiv 1711.00937, eq. 3).
    rotation_trick: gradients pass the code by a rotation and rescaling (arXiv 2410.06424), not straight
        through.
    kmeans_iterations: rounds of Lloyd's algorithm on the first batch; 0 takes vectors of that batch as codes.

    Of `fsq`:
    fsq_balance: weight of the divergence of the tokens' mean distribution over codes from equal use, in nats.

    Of `lfq`:
    entropy_weight: of the mean entropy of a token's code less `entropy_gamma` times the entropy of the mean,
        in nats.
    entropy_temperature: of the distances from which a token's distribution over codes is made.

    Of `gumbel`:
    gumbel_tau, gumbel_anneal_updates: the temperature at the end, and the updates over which it falls there
        from 1. Published: 1/16 over 150,000.
    gumbel_hard: the decoder reads one code a token in training too, and gradients those of the soft sample.
    gumbel_kl_weight, gumbel_kl_warmup: weight of the divergence from uniform use, a mean over tokens in nats,
        and the updates over which it grows to that from 0.
    gumbel_balance: weight of the divergence of the mean over tokens from uniform use, in nats.

    Of `kl`:
    kl_weight: of the divergence summed over an example's latents and averaged over examples.
    """

    kind: Literal["vq", "fsq", "lfq", "gumbel", "kl"] = "vq"
    codebook_size: int = 8192
    latent_dim: int = 8
    fsq_levels: tuple[int, ...] = (8, 5, 5, 5)
    commitment: float = 0.25
    restart_dead_after: float = 16.0
    codebook: Literal["ema", "gradient"] = "ema"
    ema_decay: float = 0.99
    rotation_trick: bool = True
    kmeans_iterations: int = 10
    fsq_balance: float = 0.2
    entropy_weight: float = 0.1
    entropy_gamma: float = 1.0
    entropy_temperature: float = 1.0
    gumbel_tau: float = 1 / 16
    gumbel_anneal_updates: int = 5000
    gumbel_hard: bool = False
    gumbel_kl_weight: float = 5e-4
    gumbel_kl_warmup: int = 1000
    gumbel_balance: float = 0.25
    kl_weight: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "fsq_levels", tuple(self.fsq_levels))  # YAML gives a list
        require(self.kind in KINDS, self, "kind", f"one of {', '.join(KINDS)}")
        require(self.codebook_size >= 2, self, "codebook_size", "at least 2")
        if self.kind == "lfq":
            bits_ok = self.codebook_size & (self.codebook_size - 1) == 0 and 4 <= self.codebook_size <= MAX_LFQ_SIZE
            require(bits_ok, self, "codebook_size", f"for lfq, a power of two from 4 to {MAX_LFQ_SIZE}")
        require(self.latent_dim >= 2, self, "latent_dim", "at least 2")
        levels_ok = len(self.fsq_levels) >= 1 and all(level >= 3 for level in self.fsq_levels)
        require(levels_ok, self, "fsq_levels", "one or more integers of at least 3")
        require(self.codebook in ("ema", "gradient"), self, "codebook", "one of ema, gradient")
        require(0.0 <= self.ema_decay < 1.0, self, "ema_decay", "a number in [0, 1)")
        require(self.kmeans_iterations >= 0, self, "kmeans_iterations", "an integer of at least 0")
        require(self.entropy_temperature > 0.0, self, "entropy_temperature", "a number above 0")
        require(0.0 < self.gumbel_tau <= 1.0, self, "gumbel_tau", "a number in (0, 1]")
        require(self.gumbel_anneal_updates >= 1, self, "gumbel_anneal_updates", "an integer of at least 1")
        require(self.gumbel_kl_warmup >= 0, self, "gumbel_kl_warmup", "an integer of at least 0")
        for name in (
            "commitment",
            "restart_dead_after",
            "fsq_balance",
            "entropy_weight",
            "entropy_gamma",
            "gumbel_kl_weight",
            "gumbel_balance",
            "kl_weight",
        ):
            require(getattr(self, name) >= 0.0, self, name, "a number of at least 0")

    @property
    def dim(self) -> int:
        """Channels of the latents that this quantizer hands to the decoder."""
        if self.kind == "lfq":
            return self.codebook_size.bit_length() - 1
        return len(self.fsq_levels) if self.kind == "fsq" else self.latent_dim

    @property
    def size(self) -> int | None:
        """How many codes there are; None where the latents are continuous."""
        if self.kind == "kl":
            return None
        return math.prod(self.fsq_levels) if self.kind == "fsq" else self.codebook_size
