"""The quantizer that a config names."""

from __future__ import annotations

from omniloom.models.tokenizer.quantizers.base import Quantizer
from omniloom.models.tokenizer.quantizers.config import QuantizerConfig
from omniloom.models.tokenizer.quantizers.fsq import FiniteScalarQuantizer
from omniloom.models.tokenizer.quantizers.gumbel import GumbelQuantizer
from omniloom.models.tokenizer.quantizers.kl import GaussianBottleneck
from omniloom.models.tokenizer.quantizers.lfq import LookupFreeQuantizer
from omniloom.models.tokenizer.quantizers.vq import VectorQuantizer
from omniloom.models.tokenizer.quantizers.vq_gradient import GradientVectorQuantizer

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
