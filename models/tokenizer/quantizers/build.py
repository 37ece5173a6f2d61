"""The quantizer that a config names."""

from __future__ import annotations

from models.tokenizer.quantizers.base import Quantizer
from models.tokenizer.quantizers.config import QuantizerConfig
from models.tokenizer.quantizers.fsq import FiniteScalarQuantizer
from models.tokenizer.quantizers.kl import GaussianBottleneck
from models.tokenizer.quantizers.vq import VectorQuantizer

KINDS = {"vq": VectorQuantizer, "fsq": FiniteScalarQuantizer, "kl": GaussianBottleneck}


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer of `config.kind`, freshly initialised."""
    return KINDS[config.kind](config)
