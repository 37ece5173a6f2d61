"""What a Llama-shaped checkpoint's `config.json` says, in our terms. In: the parsed JSON, as `transformers`
writes it. Out: a `UnifiedConfig`, its visual part from the caller. Standard library only.

Read: the architectures of `families`; Mistral and Qwen2 without a sliding window. Rotary frequencies: plain ones or
Llama 3.1's ("llama3"). Anything that would change what the model computes and is not read here is a ValueError that
names the file and the key.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from omniloom.models.hf.config_json import Document
from omniloom.models.unified.config import RopeScaling, SpecialIds, UnifiedConfig
from omniloom.models.unified.llama.families import Family, described

# What most families have not.
_PARTS = ("norm_kind", "parallel", "feed_forward", "head_bias")
# What a BAGEL is to its pictures' latents (arXiv 2505.14683; ByteDance-Seed/Bagel, `Bagel` and `TimestepEmbedder`).
_OF_TOWER: dict[str, Any] = {
    "rope_scheme": "one_place",
    "modality_experts": "all",
    "time_dim": 256,
    "time_scale": 1.0,
    "latent_patchifier": "linear",
    "flow_head_layers": 0,
    "modulation": None,
    "step_sizes": None,
}


def tower_of(family: Family, config: UnifiedConfig) -> str | None:
    """Of a family whose latents have a tower, its mark in names, where a model of `config` has that tower; else
    None."""
    has_it = config.latent_dim is not None and all(getattr(config, name) == own for name, own in _OF_TOWER.items())
    return family.tower if has_it else None


def architecture(values: Any, where: str) -> dict[str, Any]:
    """The fields of `UnifiedConfig` that the checkpoint decides. `where` names the file in errors."""
    found = described(values, where)
    family, document = found.family, found.text
    _refuse_variants(document, family)
    heads, width = document.integer("num_attention_heads"), document.integer("hidden_size")
    kv_heads = document.integer("num_key_value_heads", _silent(document, "num_key_value_heads", family.kv_heads, heads))
    head_dim = _silent(document, "head_dim", family.head_dim, width // heads)
    if document.values.get("head_dim") is None and not family.head_dim and width % heads:
        raise document.wrong("hidden_size", f"a multiple of num_attention_heads={heads}")
    biased = family.bias_key and document.flag("attention_bias")
    has_qk_norm = family.qk_norm is not None and (family.qk_key is None or document.flag(family.qk_key))
    base, scaling, fraction = _rope(document, family)
    decided = {
        "vocab_size": document.integer("vocab_size"),
        "width": width,
        "heads": heads,
        "kv_heads": kv_heads,
        "layers": document.integer("num_hidden_layers"),
        "head_dim": document.integer("head_dim", head_dim),
        "hidden": document.integer("intermediate_size"),
        "norm_eps": document.number(family.eps_key, family.norm_eps),
        "rope_base": base,
        "rope_scaling": scaling,
        "rotary_fraction": fraction,
        "qk_norm": has_qk_norm,
        "qk_norm_kind": family.qk_norm if family.qk_norm and has_qk_norm else "rms",
        "norm_after": family.after_key is not None and document.flag(family.after_key),
        "out_bias": biased,
        "qkv_bias": family.qkv_bias or biased,
        "tied": found.whole.flag("tie_word_embeddings", family.tied),
        "block": "llama",
        "attention_every": None,
        **dict.fromkeys(_PARTS),
        **dict(family.shape),
    }
    return decided if found.codes is None else {**decided, "code_dim": found.codes.dim}


def _silent(document: Document, key: str, family: int | None, otherwise: int) -> int:
    """The family's default of a missing key; null always means `otherwise`."""
    return family if family is not None and key not in document.values else otherwise


def _refuse_variants(document: Document, family: Family) -> None:
    document.only("hidden_act", family.activation)
    document.only("mlp_bias", False, None)
    document.only("quantization_config", None)
    document.only("use_sliding_window", False, None)
    layer_types = document.values.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise document.wrong("layer_types", '"full_attention" in every layer')
    if family.window and document.values.get("sliding_window", 0) is not None:
        raise document.wrong("sliding_window", "null, as nothing here attends in a window (absent means 4096)")


def _rope(document: Document, family: Family) -> tuple[float, RopeScaling | None, float | None]:
    """Base, scaling and the share of a head that turns, from `rope_parameters` (transformers 5) or `rope_theta`,
    `rope_scaling` and `partial_rotary_factor`."""
    key = "rope_parameters" if document.values.get("rope_parameters") is not None else "rope_scaling"
    rope = document.values.get(key)
    if rope is None:
        rope = {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise document.wrong(key, "one object of rotary parameters, or null")
    inner = Document(rope, f"{document.where}: {key}")
    fraction = family.rotary_fraction
    if fraction is None:
        for held in (document, inner):
            held.only("partial_rotary_factor", 1.0, None)
    else:
        fraction = document.number("partial_rotary_factor", fraction)
        fraction = inner.number("partial_rotary_factor", fraction)
    usual = family.rope_base
    base = inner.number("rope_theta") if "rope_theta" in rope else document.number("rope_theta", usual)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", None):
        return base, None, fraction
    if kind != "llama3":
        raise ValueError(f"{inner.where}.rope_type: expected 'default' or 'llama3', got {kind!r}")
    length = inner.integer("original_max_position_embeddings", document.values.get("max_position_embeddings"))
    factor, low, high = (inner.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    try:
        return base, RopeScaling(factor, low, high, original_length=length), fraction
    except ValueError as error:
        raise ValueError(f"{inner.where}: {error}") from None


def config_from_llama(
    values: Any,
    where: str,
    *,
    latent_dim: int | None = 1,
    specials: SpecialIds | None = None,
    vocab_size: int | None = None,
    **overrides: Any,
) -> UnifiedConfig:
    """The model that a checkpoint's `config.json` becomes.

    values      the parsed JSON; `where` names its file in errors
    specials    ids of our special tokens. The vocabulary grows where one lies behind it. Without them it stays
                as it is: those that the file names are its own, and the others stand on its last ids, which text
                goes on using: give `specials` to train with pictures
    vocab_size  rows of the vocabulary at least
    overrides   other fields of `UnifiedConfig`; those that `architecture` gives may only be confirmed, and
                `codebook_size` where the checkpoint has codes. Such a model counts positions in pictures as in texts
                (rope_1d) unless `rope_scheme` says otherwise; where latents have a tower, another `rope_scheme` than
                its one_place starts them anew
    ValueError naming the file and the key, or the field of `UnifiedConfig`.
    """
    decided, found = architecture(values, where), described(values, where)
    if found.codes:
        if (size := overrides.get("codebook_size")) not in (None, found.codes.size):
            raise ValueError(
                f"codebook_size: {where} has {found.codes.size} codes, got {size}: they are of another visual tokenizer"
            )
        overrides.setdefault("rope_scheme", "rope_1d")
    if found.family.tower and latent_dim and overrides.get("rope_scheme", "one_place") == "one_place":
        found.whole.only("interpolate_pos", False)
        decided |= _OF_TOWER
    for name, value in overrides.items():
        if name in decided and value != decided[name]:
            raise ValueError(f"{name}: {where} says {decided[name]!r}, got {value!r}; leave it out")
    own = decided["vocab_size"]
    if vocab_size is not None and vocab_size < own:
        raise ValueError(f"vocab_size: {where} has {own} tokens, got {vocab_size}")
    around = found.codes.specials if found.codes else ()
    if specials is None:
        told = {f"{name}_token_id": number for name, number in around}
        specials = _file_specials({**found.text.values, **told}, own, found.text.where)
    for name, number in around:
        if getattr(specials, name) != number:
            raise ValueError(
                f"specials.{name}: {where} has it at {number}, the tokenizer at {getattr(specials, name)}: it lacks "
                "the tokens around pictures, or has them elsewhere (docs/open_models.md)"
            )
    top = max(getattr(specials, f.name) for f in fields(specials))
    rows = max(own, vocab_size or 0, top + 1)
    # Heads too narrow for three axes are toys', but they load.
    turning = int(decided["head_dim"] * (decided["rotary_fraction"] or 1))
    overrides.setdefault("axes", max(2, min(3, turning // 2)))
    try:
        return UnifiedConfig(**{**overrides, **decided, "vocab_size": rows}, latent_dim=latent_dim, specials=specials)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _file_specials(values: dict, vocab_size: int, where: str) -> SpecialIds:
    if vocab_size < len(fields(SpecialIds)):
        raise ValueError(f"{where}: vocab_size: expected at least {len(fields(SpecialIds))}, got {vocab_size}")
    known: dict[str, int] = {}
    for name in ("bos", "eos", "pad", "boi", "bov", "eoi"):
        value = values.get(f"{name}_token_id")
        # A chat model has several ends, of which the first is the text's.
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
            continue
        if name in ("bos", "eos") or value not in known.values():
            known[name] = value
    free = (i for i in reversed(range(vocab_size)) if i not in known.values())
    return SpecialIds(**{f.name: known[f.name] if f.name in known else next(free) for f in fields(SpecialIds)})
