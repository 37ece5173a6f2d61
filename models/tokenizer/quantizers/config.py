"""Configs of the bottleneck between encoder and decoder: one frozen dataclass a kind, standard library only.

In: plain values. Out: checked values that the quantizers are built from; `KINDS`, our rows of the table of quantizers.
Errors: `ValueError` naming the field, its value and what was expected.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, cast

from omniloom.models.checks import require
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig, QuantizerKind

MAX_BINARY_SIZE = 2**20
# The fields that all kinds shared before each had its own, at the values that they had where a kind did not read them.
_ONE_FORM = {
    "kind": "vq",
    "codebook_size": 8192,
    "latent_dim": 8,
    "fsq_levels": (8, 5, 5, 5),
    "commitment": 0.25,
    "restart_dead_after": 16.0,
    "codebook": "ema",
    "ema_decay": 0.99,
    "rotation_trick": True,
    "kmeans_iterations": 10,
    "fsq_balance": 0.2,
    "entropy_weight": 0.1,
    "entropy_gamma": 1.0,
    "entropy_temperature": 1.0,
    "gumbel_tau": 1 / 16,
    "gumbel_anneal_updates": 5000,
    "gumbel_hard": False,
    "gumbel_kl_weight": 5e-4,
    "gumbel_kl_warmup": 1000,
    "gumbel_balance": 0.25,
    "kl_weight": 1e-6,
}


class _Ours(QuantizerConfig):
    """Fields and checks that our kinds share."""

    def canonical_form(self) -> dict[str, Any]:
        """The form that enters a stage's fingerprint: the one that all kinds shared, so that what was trained before
        each had its own stays cached."""
        return _ONE_FORM | {self.FORMER.get(name, name): value for name, value in asdict(cast(Any, self)).items()}

    def _check(self) -> None:
        """The rules of fields that several kinds have."""
        require(self.kind == type(self).kind, self, "kind", type(self).kind)
        for name in ("commitment", "restart_dead_after", "balance", "kl_weight"):
            if hasattr(self, name):
                require(getattr(self, name) >= 0.0, self, name, "a number of at least 0")
        for name in ("codebook_size", "latent_dim"):
            if hasattr(self, name):
                require(getattr(self, name) >= 2, self, name, "at least 2")


class _Codebook(_Ours):
    """A kind whose codes are vectors: `codebook_size` of them, of `latent_dim` channels."""

    codebook_size: int
    latent_dim: int

    @property
    def dim(self) -> int:
        return self.latent_dim

    @property
    def size(self) -> int:
        return self.codebook_size


@dataclass(frozen=True)
class VQConfig(_Codebook):
    """A codebook on the unit sphere, learned as moving averages of the latents (arXiv 1711.00937, appendix A.1)."""

    kind: Literal["vq"] = "vq"
    """The kind of quantizer."""
    codebook_size: int = 8192
    """Number of codes."""
    latent_dim: int = 8
    """Channels of a code."""
    commitment: float = 0.25
    """Weight of the pull of the latents towards their code."""
    restart_dead_after: float = 16.0
    """A code counts as dead that went unused while the average code was used this many times; dead codes move onto
    latents of the current batch. 0: they stay where they are."""
    ema_decay: float = 0.99
    """Decay of the moving averages, in [0, 1)."""
    rotation_trick: bool = True
    """Gradients pass the code by a rotation and rescaling (arXiv 2410.06424), not straight through."""
    kmeans_iterations: int = 10
    """Rounds of Lloyd's algorithm on the first batch; 0 takes vectors of that batch as codes."""

    def __post_init__(self) -> None:
        self._check()
        require(0.0 <= self.ema_decay < 1.0, self, "ema_decay", "a number in [0, 1)")
        require(self.kmeans_iterations >= 0, self, "kmeans_iterations", "an integer of at least 0")


@dataclass(frozen=True)
class VQGradientConfig(_Codebook):
    """A codebook on the unit sphere, learned by gradient descent on the codebook loss (arXiv 1711.00937, eq. 3)."""

    kind: Literal["vq_gradient"] = "vq_gradient"
    """The kind of quantizer."""
    codebook_size: int = 8192
    """Number of codes."""
    latent_dim: int = 8
    """Channels of a code."""
    commitment: float = 0.25
    """Weight of the pull of the latents towards their code."""
    restart_dead_after: float = 16.0
    """A code counts as dead that went unused while the average code was used this many times; dead codes move onto
    latents of the current batch. 0: they stay where they are."""
    rotation_trick: bool = True
    """Gradients pass the code by a rotation and rescaling (arXiv 2410.06424), not straight through."""
    kmeans_iterations: int = 10
    """Rounds of Lloyd's algorithm on the first batch; 0 takes vectors of that batch as codes."""

    def __post_init__(self) -> None:
        self._check()
        require(self.kmeans_iterations >= 0, self, "kmeans_iterations", "an integer of at least 0")

    def canonical_form(self) -> dict[str, Any]:
        return super().canonical_form() | {"kind": "vq", "codebook": "gradient"}


@dataclass(frozen=True)
class FSQConfig(_Ours):
    """Finite scalar quantisation (arXiv 2309.15505): each channel is rounded to one of a few levels."""

    FORMER: ClassVar = {"levels": "fsq_levels", "balance": "fsq_balance"}

    kind: Literal["fsq"] = "fsq"
    """The kind of quantizer."""
    levels: tuple[int, ...] = (8, 5, 5, 5)
    """Levels of each channel, at least 3; there are as many codes as their product."""
    commitment: float = 0.25
    """Weight of the pull of the latents out of saturation."""
    restart_dead_after: float = 16.0
    """A code counts as dead that went unused while the average code was used this many times (0: 16); for the log."""
    balance: float = 0.2
    """Weight of the divergence of the tokens' mean distribution over codes from equal use, in nats."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))  # YAML and JSON have lists
        self._check()
        levels_ok = len(self.levels) >= 1 and all(level >= 3 for level in self.levels)
        require(levels_ok, self, "levels", "one or more integers of at least 3")

    @property
    def dim(self) -> int:
        return len(self.levels)

    @property
    def size(self) -> int:
        return math.prod(self.levels)


class _Binary(_Ours):
    """A kind whose codes are signs: `codebook_size` of them, a bit a channel."""

    codebook_size: int

    def _check_bits(self) -> None:
        self._check()
        size = self.codebook_size
        bits_ok = size & (size - 1) == 0 and 4 <= size <= MAX_BINARY_SIZE
        require(bits_ok, self, "codebook_size", f"for {self.kind}, a power of two from 4 to {MAX_BINARY_SIZE}")
        for name in ("entropy_weight", "entropy_gamma"):
            require(getattr(self, name) >= 0.0, self, name, "a number of at least 0")

    @property
    def dim(self) -> int:
        return self.codebook_size.bit_length() - 1

    @property
    def size(self) -> int:
        return self.codebook_size


@dataclass(frozen=True)
class LFQConfig(_Binary):
    """Lookup-free quantisation (arXiv 2310.05737): one bit a channel, no codebook."""

    kind: Literal["lfq"] = "lfq"
    """The kind of quantizer."""
    codebook_size: int = 8192
    """Number of codes, a power of two; one channel per bit."""
    commitment: float = 0.25
    """Weight of the pull of the latents towards their code."""
    restart_dead_after: float = 16.0
    """A code counts as dead that went unused while the average code was used this many times (0: 16); for the log."""
    entropy_weight: float = 0.1
    """Weight of the mean entropy of a token's code less `entropy_gamma` times the entropy of the mean, in nats."""
    entropy_gamma: float = 1.0
    """Weight of the entropy of the tokens' mean distribution within that term."""
    entropy_temperature: float = 1.0
    """Temperature of the squared distances from which a token's distribution over codes is made."""

    def __post_init__(self) -> None:
        self._check_bits()
        require(self.entropy_temperature > 0.0, self, "entropy_temperature", "a number above 0")


@dataclass(frozen=True)
class BSQConfig(_Binary):
    """Binary spherical quantisation (arXiv 2406.07548): one bit a channel on the unit sphere, no codebook."""

    kind: Literal["bsq"] = "bsq"
    """The kind of quantizer."""
    codebook_size: int = 8192
    """Number of codes, a power of two; one channel per bit."""
    commitment: float = 0.25
    """Weight of the pull of the latents towards their code."""
    restart_dead_after: float = 16.0
    """A code counts as dead that went unused while the average code was used this many times (0: 16); for the log."""
    entropy_weight: float = 0.1
    """Weight of the mean entropy of a token's code less `entropy_gamma` times the entropy of the mean, in nats."""
    entropy_gamma: float = 1.0
    """Weight of the entropy of the tokens' mean distribution within that term."""
    inverse_temperature: float = 10.0
    """How sharply a token's distribution over codes follows the cosine: weights are exp(it times the cosine)."""
    group_size: int = 9
    """Bits, at most, whose joint distribution the entropy of the mean is of; those of the groups are added."""

    def __post_init__(self) -> None:
        self._check_bits()
        require(self.inverse_temperature > 0.0, self, "inverse_temperature", "a number above 0")
        require(self.group_size >= 1, self, "group_size", "an integer of at least 1")

    def canonical_form(self) -> dict[str, Any]:
        return asdict(self)  # it never had the form that the others shared


@dataclass(frozen=True)
class GumbelConfig(_Codebook):
    """Gumbel-softmax over a codebook, as in the discrete VAE (arXiv 2102.12092)."""

    FORMER: ClassVar = {
        name: f"gumbel_{name}" for name in ("tau", "anneal_updates", "hard", "kl_weight", "kl_warmup", "balance")
    }

    kind: Literal["gumbel"] = "gumbel"
    """The kind of quantizer."""
    codebook_size: int = 8192
    """Number of codes."""
    latent_dim: int = 8
    """Channels of a code."""
    restart_dead_after: float = 16.0
    """A code counts as dead that went unused while the average code was used this many times (0: 16); for the log."""
    tau: float = 1 / 16
    """The temperature at the end, in (0, 1]; it starts at 1. Published: 1/16."""
    anneal_updates: int = 5000
    """Updates over which the temperature falls. Published: 150,000."""
    hard: bool = False
    """The decoder reads one code a token in training too, and gradients are those of the soft sample."""
    kl_weight: float = 5e-4
    """Weight of the divergence of a token's distribution from uniform use, a mean over tokens in nats."""
    kl_warmup: int = 1000
    """Updates over which that weight grows from 0."""
    balance: float = 0.25
    """Weight of the divergence of the tokens' mean distribution from uniform use, in nats."""

    def __post_init__(self) -> None:
        self._check()
        require(0.0 < self.tau <= 1.0, self, "tau", "a number in (0, 1]")
        require(self.anneal_updates >= 1, self, "anneal_updates", "an integer of at least 1")
        require(self.kl_warmup >= 0, self, "kl_warmup", "an integer of at least 0")


@dataclass(frozen=True)
class GaussianConfig(_Ours):
    """A Gaussian posterior under a KL penalty (arXiv 1312.6114): continuous latents, no codes."""

    kind: Literal["kl"] = "kl"
    """The kind of quantizer."""
    latent_dim: int = 8
    """Channels of the latents."""
    kl_weight: float = 1e-6
    """Weight of the divergence, summed over an example's latents and averaged over examples."""

    def __post_init__(self) -> None:
        self._check()

    @property
    def dim(self) -> int:
        return self.latent_dim

    @property
    def size(self) -> None:
        return None


_HERE = "omniloom.models.tokenizer.quantizers"
KINDS = (
    QuantizerKind("vq", VQConfig, f"{_HERE}.vq:VectorQuantizer"),
    QuantizerKind("vq_gradient", VQGradientConfig, f"{_HERE}.vq_gradient:GradientVectorQuantizer"),
    QuantizerKind("fsq", FSQConfig, f"{_HERE}.fsq:FiniteScalarQuantizer"),
    QuantizerKind("lfq", LFQConfig, f"{_HERE}.lfq:LookupFreeQuantizer"),
    QuantizerKind("bsq", BSQConfig, f"{_HERE}.lfq:BinarySphericalQuantizer"),
    QuantizerKind("gumbel", GumbelConfig, f"{_HERE}.gumbel:GumbelQuantizer"),
    QuantizerKind("kl", GaussianConfig, f"{_HERE}.kl:GaussianBottleneck"),
)
