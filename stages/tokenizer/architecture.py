"""Which architecture a tokenizer stage trains: its own, that of the tokenizer that it starts from, or of a TiTok in two
stages (arXiv 2406.07550) the next one.

In: the stage's config and the config of the tokenizer before, where there is one. Out: the config that is trained.
Errors: `InputError` naming the field, where they do not fit each other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omniloom.infra.errors import InputError, within
from omniloom.models.features.clip_config import clip_document
from omniloom.models.tokenizer.build import AnyTokenizerConfig
from omniloom.models.tokenizer.config import RAEConfig, TiTokConfig, TokenizerConfig, VQGANConfig
from omniloom.models.tokenizer.vit_config import ViTConfig, vit_config
from omniloom.stages.checkpoints.outside import is_folder
from omniloom.stages.checkpoints.picture_tokenizer import FIELD, folder_config
from omniloom.stages.checkpoints.vision_encoder import encoder_config
from omniloom.stages.tokenizer.config import Config, NamedRAEConfig, is_warm_up


def architecture(
    config: Config, known: AnyTokenizerConfig | None, scorer: ViTConfig | None = None
) -> AnyTokenizerConfig:
    """What a stage trains, where the stage before made `known`, and `scorer` is the shape of the scorer's pictures'
    tower; InputError where nothing says."""
    if config.official:
        from omniloom.stages.checkpoints.tokenizer import read_official

        known = read_official(config.official).config
    model = expected_architecture(config, known, scorer=scorer)
    if model is None:
        raise no_architecture()
    return model


def of_folder(config: Config) -> VQGANConfig | None:
    """The architecture in the folder that `official` names; None where it names none, or a file, whose reader alone
    tells."""
    return folder_config(config.official) if config.official and is_folder(config.official, FIELD) else None


def no_architecture() -> InputError:
    return InputError("is missing: the architecture of the tokenizer", field="model")


def expected_architecture(
    config: Config, known: AnyTokenizerConfig | None, files: bool = True, scorer: ViTConfig | None = None
) -> AnyTokenizerConfig | None:
    """`architecture` as far as configs tell: of a released checkpoint only its reader does; without `files` None for an
    RAE, whose encoder is one, and for one whose `scorer` is not known."""
    if is_warm_up(config.model) or is_warm_up(known):
        return _in_two_stages(config, known)
    model = config.model or known
    if config.model and known and config.model.architecture != known.architecture:
        raise InputError(
            f"training starts from a tokenizer of the architecture {known.architecture!r}, got "
            f"{config.model.architecture!r}",
            field="model.architecture",
        )
    if isinstance(model, VQGANConfig):
        for field, expected in (("steps", 0), ("quantizer", None)):
            if (given := getattr(config, field)) != expected:
                wanted = "null" if expected is None else expected
                raise InputError(
                    f"expected {wanted}, got {given!r}: the picture tokenizer of an open model is taken as it is",
                    field=field,
                )
        return model
    if not isinstance(model, RAEConfig):
        with within("quantizer"):
            return replace(model, quantizer=config.quantizer) if model and config.quantizer else model
    if config.quantizer:
        raise InputError("expected none: the latents of an RAE are its encoder's features", field="quantizer")
    if isinstance(model, NamedRAEConfig):
        if not files or (scorer is None and model.encoder is None):
            return None
        with within("model"):
            shape = encoder_config(model.encoder, "encoder") if model.encoder else scorer
            model = RAEConfig(**vars(model) | {"encoder": shape})
    return model


def check_alignment(model: AnyTokenizerConfig) -> None:
    """InputError where its latents cannot be aligned: they have to lie on the picture's grid, and be learnt."""
    if not isinstance(model, TokenizerConfig):
        raise InputError(
            f"is of an OmniTokenizer's latents, and what is trained is of the architecture {model.architecture!r}",
            field="alignment",
        )


def scorer_shape(trained: Any) -> ViTConfig | None:
    """The shape of the pictures' tower of the scorer that a stage of this config makes; None where that is not
    known."""
    if trained is None:
        return None
    if trained.pretrained:
        return encoder_config(trained.pretrained, "pretrained")
    return vit_config(clip_document(trained.model.clip(trained.vocab_size, 0)), "stages.train_scorer.model")


def _in_two_stages(config: Config, known: AnyTokenizerConfig | None) -> TiTokConfig:
    """The TiTok of a warm-up on the codes of `known`; or, where that is a warm-up, the same TiTok on pixels."""
    if not config.steps:
        raise InputError("expected at least 1: neither stage of a TiTok's training can be left out", field="steps")
    if isinstance(model := config.model, TiTokConfig) and is_warm_up(model):
        if known:
            _check_proxy(model, known)
        return replace(model, quantizer=config.quantizer) if config.quantizer else model
    assert isinstance(known, TiTokConfig)
    model = replace(known, proxy_codes=None)
    if config.quantizer not in (None, model.quantizer):
        raise InputError(
            "training goes on from a TiTok's warm-up, whose encoder and codes stay as they are; expected null or its "
            "own quantizer",
            field="quantizer",
        )
    if config.model not in (None, model):
        raise InputError(
            "training goes on from a TiTok's warm-up; expected null, or the same TiTok with proxy_codes null",
            field="model",
        )
    return model


def _check_proxy(model: TiTokConfig, proxy: AnyTokenizerConfig) -> None:
    """InputError where `proxy` cannot give a warm-up one code for each patch."""
    if not isinstance(proxy, TokenizerConfig):
        raise InputError(
            "a warm-up learns the codes of an OmniTokenizer, and training starts from a tokenizer of the architecture "
            f"{proxy.architecture!r}",
            field="model.proxy_codes",
        )
    if proxy.codebook_size != model.proxy_codes:
        has = f"has {proxy.codebook_size} codes" if proxy.codebook_size else f"has no codes ({proxy.quantizer.kind})"
        raise InputError(
            f"the tokenizer that training starts from {has}, got {model.proxy_codes}", field="model.proxy_codes"
        )
    if proxy.patch_size != model.patch_size:
        raise InputError(
            f"expected {proxy.patch_size}, that of the tokenizer whose codes a warm-up learns, got {model.patch_size}",
            field="model.patch_size",
        )
    if proxy.compat == "official" and model.size[0] != model.size[1]:
        raise InputError(
            "expected a square: the tokenizer whose codes a warm-up learns takes squares alone",
            field="model.image_size",
        )
