"""The quantizer that a config names."""

from __future__ import annotations

from models.tokenizer.quantizers.base import Quantizer
from models.tokenizer.quantizers.config import QuantizerConfig
from models.tokenizer.quantizers.fsq import FiniteScalarQuantizer
from models.tokenizer.quantizers.gumbel import GumbelQuantizer
from models.tokenizer.quantizers.kl import GaussianBottleneck
from models.tokenizer.quantizers.lfq import LookupFreeQuantizer
from models.tokenizer.quantizers.vq import VectorQuantizer
from models.tokenizer.quantizers.vq_gradient import GradientVectorQuantizer

BUILDERS = {
    "vq": lambda config: {"ema": VectorQuantizer, "gradient": GradientVectorQuantizer}[config.codebook](config),
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "gumbel": GumbelQuantizer,
    "kl": GaussianBottleneck,
}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer of `config.kind`, freshly initialised."""
    return BUILDERS[config.kind](config)
