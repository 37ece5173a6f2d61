"""One small quantizer of each kind, for the tests of them all."""

from __future__ import annotations

import torch

from omniloom.models.tokenizer.quantizers.build import build_quantizer
from omniloom.models.tokenizer.quantizers.config import QuantizerConfig

CASES = {
    "vq": {"codebook_size": 32, "latent_dim": 4},
    "vq-gradient": {"codebook": "gradient", "codebook_size": 32, "latent_dim": 4},
    "fsq": {"kind": "fsq", "fsq_levels": (4, 3, 3)},
    "lfq": {"kind": "lfq", "codebook_size": 32},
    "gumbel": {
        "kind": "gumbel",
        "codebook_size": 32,
        "latent_dim": 4,
        "gumbel_anneal_updates": 20,
        "gumbel_kl_warmup": 10,
    },
    "gumbel-hard": {"kind": "gumbel", "codebook_size": 32, "latent_dim": 4, "gumbel_hard": True},
    "kl": {"kind": "kl", "latent_dim": 4},
}
WITH_CODES = [name for name in CASES if name != "kl"]


def build(name: str, **changes):
    torch.manual_seed(0)
    return build_quantizer(QuantizerConfig(**{**CASES[name], **changes}))


def state_of(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def batch(quantizer, seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, quantizer.input_dim, generator=generator)
