"""The quantizer that a config names."""

from __future__ import annotations

from omniloom.models.extensions import resolve
from omniloom.models.tokenizer.quantizers.base import Quantizer
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig, kinds


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer of `config.kind`, freshly initialised."""
    return resolve(kinds()[config.kind].build)(config)
