"""One small quantizer of each kind, for the tests of them all."""

from __future__ import annotations

from dataclasses import replace

import torch

from omniloom.models.tokenizer.quantizers.build import build_quantizer
from omniloom.models.tokenizer.quantizers.config import (
    BSQConfig,
    FSQConfig,
    GaussianConfig,
    GumbelConfig,
    LFQConfig,
    VQConfig,
    VQGradientConfig,
)
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig

CASES = {
    "vq": VQConfig(codebook_size=32, latent_dim=4),
    "vq-gradient": VQGradientConfig(codebook_size=32, latent_dim=4),
    "fsq": FSQConfig(levels=(4, 3, 3)),
    "lfq": LFQConfig(codebook_size=32),
    "bsq": BSQConfig(codebook_size=32, group_size=2),
    "gumbel": GumbelConfig(codebook_size=32, latent_dim=4, anneal_updates=20, kl_warmup=10),
    "gumbel-hard": GumbelConfig(codebook_size=32, latent_dim=4, hard=True),
    "kl": GaussianConfig(latent_dim=4),
}
WITH_CODES = [name for name in CASES if name != "kl"]


def config(name: str, **changes) -> QuantizerConfig:
    """The case's config with changes; what is without codes has no dead ones."""
    if CASES[name].size is None:
        changes.pop("restart_dead_after", None)
    return replace(CASES[name], **changes)


def build(name: str, **changes):
    torch.manual_seed(0)
    return build_quantizer(config(name, **changes))


def state_of(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def batch(quantizer, seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, quantizer.input_dim, generator=generator)
