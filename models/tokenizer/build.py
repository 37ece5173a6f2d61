"""Which tokenizer a config stands for, and the config that plain values stand for.

In: a `TokenizerConfig`, `TiTokConfig`, `RAEConfig` or `VQGANConfig`, or the mapping that `dataclasses.asdict` made of
one (a saved `config.json`). Out: the module, freshly initialised; the config. Reading a config needs no torch.
Errors: `ValueError` naming the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from omniloom.models.tokenizer.config import RAEConfig, TiTokConfig, TokenizerConfig, VQGANConfig
from omniloom.models.tokenizer.quantizers.kinds import QuantizerConfig, read_quantizer
from omniloom.models.tokenizer.vit_config import ViTConfig

if TYPE_CHECKING:
    from omniloom.models.tokenizer.base import VisualTokenizer

AnyTokenizerConfig = TokenizerConfig | TiTokConfig | RAEConfig | VQGANConfig
CONFIGS = {"omni": TokenizerConfig, "titok": TiTokConfig, "rae": RAEConfig, "vqgan": VQGANConfig}
DEFAULT_ARCHITECTURE = "omni"


def config_from_dict(values: Mapping[str, Any], where: str = "tokenizer") -> AnyTokenizerConfig:
    """The config of `values`; without `architecture` they are an OmniTokenizer's. `where` opens the errors."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected an object, got {values!r}")
    architecture = values.get("architecture", DEFAULT_ARCHITECTURE)
    if not isinstance(architecture, str) or architecture not in CONFIGS:
        raise ValueError(f"{where}.architecture: expected one of {', '.join(CONFIGS)}, got {architecture!r}")
    values = dict(values)
    if "quantizer" in values and not isinstance(values["quantizer"], QuantizerConfig):
        values["quantizer"] = read_quantizer(values["quantizer"], f"{where}.quantizer")
    if "encoder" in values and not isinstance(values["encoder"], ViTConfig):
        values["encoder"] = _fill(ViTConfig, values["encoder"], f"{where}.encoder")
    return _fill(CONFIGS[architecture], values, where)


def _fill(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected an object, got {values!r}")
    known = {field.name for field in dataclasses.fields(cls)}
    for name in values:
        if name not in known:
            raise ValueError(f"{where}.{name}: unknown field of {cls.__name__}")
    try:
        return cls(**values)
    except TypeError as error:  # a value that cannot be compared with a number
        raise ValueError(f"{where}: {cls.__name__}: {error}") from error


def patch_size_of(config: AnyTokenizerConfig) -> int:
    """Pixels a side of what a latent stands for; ValueError where an RAE's encoder is not read yet."""
    return config.known_patch_size if isinstance(config, RAEConfig) else config.patch_size


def build_tokenizer(config: AnyTokenizerConfig) -> VisualTokenizer:
    """The tokenizer of `config` with fresh weights."""
    if isinstance(config, TiTokConfig):
        from omniloom.models.tokenizer.titok import TiTok

        return TiTok(config)
    if isinstance(config, TokenizerConfig):
        from omniloom.models.tokenizer.omni import OmniTokenizer

        return OmniTokenizer(config)
    if isinstance(config, RAEConfig):
        from omniloom.models.tokenizer.rae import RAE

        return RAE(config)
    if isinstance(config, VQGANConfig):
        from omniloom.models.tokenizer.vqgan import VQGAN

        return VQGAN(config)
    raise ValueError(f"config: expected one of a tokenizer, got {type(config).__name__}")
