"""The families of checkpoints that are read and written back: how each differs from Llama, and what its picture codes
are. Standard library only.

family                     language model in config.json, and its tensors          codes of pictures
Llama, Mistral, Qwen2, 3   the file itself; model.*, lm_head                       none
Chameleon                  the file itself; model.*, lm_head                       tokens IMGIMG*Z
Emu3                       text_config; text_model.model.*, text_model.lm_head     tokens <|visual token *|>
Janus                      text_config; model.language_model.*, lm_head            an embedding with an MLP, a head
BAGEL                      the file llm_config.json; language_model.*              latents, in a tower of their own
Phi                        the file itself; model.*, lm_head                       none
Show-o                     phi-1.5's, or the file llm_config.json; showo.*         the last tokens, before the mask

Chameleon (arXiv 2405.09818), Emu3 (arXiv 2409.18869) and Janus-Pro (arXiv 2501.17811) as `transformers` has them,
BAGEL (arXiv 2505.14683) as its authors' repository lays it out, ByteDance-Seed/Bagel: two towers, each a Qwen2 with
QK-norm, of texts and of latents. Show-o (arXiv 2408.12528) as its authors' repository lays it out, showlab/Show-o: a
Phi with QK-norm, whose vocabulary is that of phi-1.5's tokenizer, ten tokens around pictures, the codes and the mask.
Codes that are tokens keep their rows of the vocabulary, and `code_in` and `code_out` begin as copies of them: texts are
read with the one, pictures with the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from omniloom.models.hf.config_json import Document

BAGEL, SHOW_O = "BagelForConditionalGeneration", "Showo"
OF_AUTHORS = (BAGEL, SHOW_O)  # layouts that `transformers` does not have
# What a Show-o says of its language model, which is named by another folder's address (microsoft/phi-1_5).
_PHI_1_5 = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}
_AROUND = ("pad", "boi", "eoi", "bov")  # of a Show-o's ten tokens, behind the tokenizer's in this order, those we have


@dataclass(frozen=True)
class Codes:
    """The picture codes of a checkpoint: how many; `tokens`, their ids in the vocabulary in the order of the codes, and
    that of the `mask`, or `dim`, the numbers of an embedding of their own; `specials`, names and ids of tokens around
    them, as far as the file says."""

    size: int
    tokens: tuple[int, ...] = ()
    dim: int | None = None
    mask: int | None = None
    specials: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Names:
    """How the tensors of a language model are called."""

    body: str = "model."
    head: str = "lm_head.weight"
    norm: str = "norm"  # the last one
    out: str = "o_proj"  # of attention
    head_norms: tuple[str, str] = ("q_norm", "k_norm")

    @property
    def embedding(self) -> str:
        return f"{self.body}embed_tokens.weight"

    @property
    def head_bias(self) -> str:
        return f"{self.head.removesuffix('weight')}bias"


@dataclass(frozen=True)
class Family:
    """How an architecture differs from Llama, and what its `config.json` means where it is silent. A family with
    `bias_key` has biases on query, key, value and output where that key is true; one with `qk_key` QK-norms where that
    key is."""

    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: width / heads
    qkv_bias: bool = False
    qk_norm: str | None = None  # a kind of `UnifiedConfig.qk_norm_kind`
    bias_key: bool = False
    window: bool = False  # has a sliding window unless `sliding_window` is null
    qk_key: str | None = None
    eps_key: str = "rms_norm_eps"
    norm_eps: float = 1e-6
    activation: str = "silu"
    rope_base: float = 10000.0
    rotary_fraction: float | None = None  # what it is by default, of a family that has the choice
    tied: bool = False
    after_key: str | None = None  # norms stand behind attention and MLP where that key is true
    text: str | None = None  # the key that the language model's config stands under
    names: tuple[Names, ...] = (Names(),)  # the first that a file has; the last is what `transformers` calls modules
    codes: Callable[[Document], Codes] | None = None
    others: tuple[str, ...] = ()  # how the names of parts begin that are no language model's
    tower: str | None = None  # what the names of the tower of latents have in them that those of texts have not
    text_file: str | None = None  # the file of the language model's config, where it has one of its own
    shape: tuple[tuple[str, Any], ...] = ()  # fields of `UnifiedConfig` that are always so
    is_fixed: bool = False  # its config has no place for another vocabulary or type

    def is_other(self, key: str) -> bool:
        """Whether a tensor is of a part that is no language model's, and where it is not read written back as it
        is."""
        return key.startswith(self.others) or self.tower is not None and f"{self.tower}." in key


def _sub(document: Document, key: str) -> Document:
    value = document.values.get(key)
    if not isinstance(value, dict):
        raise document.wrong(key, "an object")
    return Document(value, f"{document.where}: {key}")


def _tokens(document: Document, begin: str, end: str, digits: str, size: int) -> Codes:
    """Codes that `vocabulary_map` gives ids to, by names of their number between `begin` and `end`."""
    names = document.values.get("vocabulary_map")
    if not isinstance(names, dict):
        raise document.wrong("vocabulary_map", "an object of tokens' names and ids")
    found: dict[int, int] = {}
    for name, number in names.items():
        if not (name.startswith(begin) and name.endswith(end)):
            continue
        spelled = name[len(begin) : -len(end)]
        if not spelled or set(spelled) - set(digits) or not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{document.where}: vocabulary_map: {name!r}: expected a code's number and an id")
        found[int("".join(str(digits.index(letter)) for letter in spelled))] = number
    if sorted(found) != list(range(size)) or len(set(found.values())) != size:
        raise ValueError(
            f"{document.where}: vocabulary_map: expected an id of its own for each code from 0 to {size - 1}, "
            f"got {len(found)}"
        )
    return Codes(size, tuple(found[code] for code in range(size)))


def _chameleon(document: Document) -> Codes:
    size = _sub(document, "vq_config").integer("num_embeddings", 8192)
    return _tokens(document, "IMGIMG", "Z", "ABCDEFGHIJ", size)


def _emu3(document: Document) -> Codes:
    size = _sub(document, "vq_config").integer("codebook_size", 32768)
    return _tokens(document, "<|visual token ", "|>", "0123456789", size)


def _janus(document: Document) -> Codes:
    codes, text = _sub(document, "vq_config"), _sub(document, "text_config")
    codes.only("hidden_act", "gelu")
    codes.only("num_hidden_layers", 2)
    width = text.integer("hidden_size")
    for key in ("projection_dim", "image_token_embed_dim"):
        if codes.integer(key, 2048) != width:
            raise codes.wrong(key, f"the language model's hidden_size {width}")
    return Codes(codes.integer("num_embeddings", 16384), dim=codes.integer("embed_dim", 8))


def _show_o(document: Document) -> Codes:
    """Before the codes a tokenizer's tokens and those around pictures, behind them the mask."""
    size, rows = document.integer("codebook_size", 8192), document.integer("vocab_size")
    words, first = document.integer("llm_vocab_size"), rows - 1 - size
    if first < words + len(_AROUND):
        raise document.wrong("vocab_size", f"more than llm_vocab_size and {len(_AROUND)} tokens, the codes and a mask")
    document.only("mask_token_id", rows - 1)
    around = tuple((name, words + number) for number, name in enumerate(_AROUND))
    return Codes(size, tuple(range(first, first + size)), mask=rows - 1, specials=around)


_PHI = Family(
    qk_norm="shared_layer",
    qk_key="qk_layernorm",
    eps_key="layer_norm_eps",
    norm_eps=1e-5,
    activation="gelu_new",
    rotary_fraction=0.5,
    names=(Names(norm="final_layernorm", out="dense", head_norms=("q_layernorm", "k_layernorm")),),
    shape=(
        *(("norm_kind", "layer"), ("parallel", True), ("feed_forward", "gelu")),
        *(("qkv_bias", True), ("out_bias", True), ("head_bias", True)),
    ),
)
FAMILIES = {
    "LlamaForCausalLM": Family(bias_key=True),
    "MistralForCausalLM": Family(kv_heads=8, window=True),
    "Qwen2ForCausalLM": Family(kv_heads=32, qkv_bias=True),
    "Qwen3ForCausalLM": Family(kv_heads=32, head_dim=128, qk_norm="rms", bias_key=True),
    "ChameleonForConditionalGeneration": Family(
        kv_heads=32,
        qk_norm="layer",
        bias_key=True,
        norm_eps=1e-5,
        after_key="swin_norm",
        codes=_chameleon,
        others=("model.vqmodel.",),
    ),
    "Emu3ForConditionalGeneration": Family(
        kv_heads=8,
        norm_eps=1e-5,
        rope_base=1e6,
        text="text_config",
        names=(Names("text_model.model.", "text_model.lm_head.weight"), Names("model.text_model.")),
        codes=_emu3,
        others=("vqmodel.", "model.vqmodel."),
    ),
    "JanusForConditionalGeneration": Family(
        bias_key=True,
        tied=True,
        text="text_config",
        names=(Names("model.language_model."),),
        codes=_janus,
        others=("model.vision_model.", "model.aligner.", "model.vqmodel.", "model.generation_"),
    ),
    BAGEL: Family(
        kv_heads=32,
        qkv_bias=True,
        qk_norm="rms",
        text="llm_config",
        text_file="llm_config.json",
        names=(Names("language_model.model.", "language_model.lm_head.weight"),),
        others=("vit_", "connector.", "vae2llm.", "llm2vae.", "time_embedder.", "latent_pos_embed."),
        tower="_moe_gen",
    ),
    "PhiForCausalLM": _PHI,
    SHOW_O: replace(
        _PHI,
        text="llm_config",
        names=(replace(_PHI.names[0], body="showo.model.", head="showo.lm_head.weight"),),
        codes=_show_o,
        others=("mm_projector.",),
        shape=(*_PHI.shape, ("joined_frame", True)),
        is_fixed=True,
    ),
}


def read_values(read: Callable[[str], Any]) -> Any:
    """What a folder says that it is. `read` gives the parsed JSON of a file there, None where there is none. That of a
    BAGEL, whose config.json differs from copy to copy, is told by its llm_config.json; a Show-o says what class it is,
    and its language model is phi-1.5 but for what an llm_config.json says."""
    whole, language = read("config.json"), read("llm_config.json")
    if isinstance(whole, dict) and whole.get("_class_name") == SHOW_O:
        known = language if isinstance(language, dict) else {}
        # Whatever its Phi's config says.
        told = {**_PHI_1_5, **known, "vocab_size": whole.get("vocab_size"), "qk_layernorm": True}
        return {**whole, "architectures": [SHOW_O], "llm_config": told}
    if language is not None:
        told = {"interpolate_pos": whole.get("interpolate_pos", False)} if isinstance(whole, dict) else {}
        return {"architectures": [BAGEL], "llm_config": language, **told}
    return whole


@dataclass(frozen=True)
class Described:
    """What a checkpoint's `config.json` says: of its whole, and of its language model, which may be the same."""

    family: Family
    whole: Document
    text: Document
    codes: Codes | None


def described(values: object, where: str) -> Described:
    """ValueError naming the file and the key of an architecture that is not read."""
    document = Document(values, where)
    names = document.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in FAMILIES:
        raise document.wrong("architectures", f"one of {', '.join(FAMILIES)}")
    family = FAMILIES[names[0]]
    text = _sub(document, family.text) if family.text else document
    if names[0].startswith("Janus"):
        text.only("model_type", "llama")  # it may name any
    return Described(family, document, text, family.codes(document) if family.codes else None)
