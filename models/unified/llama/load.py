"""Start from a Llama-shaped checkpoint. In: a folder as `transformers` saves it, with config.json and
model.safetensors (or shards and model.safetensors.index.json). Out: a `UnifiedModel` whose text part is the
checkpoint's and whose visual parts are fresh.

`models.unified.llama.config` says which architectures are read. Nothing is permuted: `rotate` pairs channel c with
c + head_dim / 2 as these checkpoints do. Weights are read through a memory map, one tensor at a time, straight into
place, so that loading takes the model's own memory and no more.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniloom.models.hf.config_json import read_json
from omniloom.models.hf.weights import Checkpoint, open_checkpoint
from omniloom.models.unified.config import SpecialIds, UnifiedConfig
from omniloom.models.unified.llama.config import config_from_llama
from omniloom.models.unified.model import UnifiedModel

_TEXT = ("embed.", "blocks.", "norm.", "head.")
_TOWER = ".visual."
_NAMED = (torch.nn.Module.named_parameters, torch.nn.Module.named_buffers)
_NEW_ROW_SPREAD = 0.1
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def is_text_parameter(name: str) -> bool:
    """Whether a parameter of `UnifiedModel` is of the part that a language model's checkpoint fills, skips between its
    blocks included; the others take pictures in and give them out, or are what pictures have of a block for
    themselves."""
    return name.startswith(_TEXT) and _TOWER not in name


def load_llama(
    folder: str | Path,
    *,
    latent_dim: int | None = 1,
    specials: SpecialIds | None = None,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    new_tokens: Collection[int] = (),
    **overrides: Any,
) -> UnifiedModel:
    """The model of a local folder, on the CPU, in training mode.

    `text_logits(ids)` equals `transformers`' logits; the vocabulary is the file's unless `specials` or `vocab_size`
    ask for more rows. New rows start near the mean of the others. A file whose head is another matrix than its
    embedding has a head of its own, whatever `tie_word_embeddings` says: `config.tied` of the model is then False.
    Visual parts are drawn from torch's global generator, for `latent_dim` channels.

    new_tokens                       ids that the checkpoint's tokenizer did not have: files pad the vocabulary with
                                     rows that nothing trained, which then start as new rows do
    specials, vocab_size, overrides  as in `models.unified.llama.config.config_from_llama`
    dtype                            of the model; files in fp32, bf16 and fp16 are converted
    ValueError naming the file and the key: an architecture or rotary scaling that is not read, a tensor that is
    missing, unknown, of a wrong shape or dtype, a file that cannot be read.
    """
    folder = Path(folder)
    document = read_json(folder / "config.json")
    config = config_from_llama(
        document,
        str(folder / "config.json"),
        latent_dim=latent_dim,
        specials=specials,
        vocab_size=vocab_size,
        **overrides,
    )
    own_vocabulary = document["vocab_size"]
    with open_checkpoint(folder) as checkpoint, torch.no_grad():
        if config.tied and _has_own_head(checkpoint, (own_vocabulary, config.width)):
            config = replace(config, tied=False)
        model = allocate(config, dtype)
        wanted = _sources(config, own_vocabulary)
        for name in (name for find in _NAMED for name, _ in find(model)):
            if is_text_parameter(name) and name not in wanted:
                raise ValueError(f"{folder}: no Llama-shaped checkpoint has {name}, which the config asks for")
        # Old files hold rotary tables, which follow from the config, and some a copy of the tied head.
        checkpoint.refuse_unknown(
            {_HEAD, *(key for sources in wanted.values() for key, _ in sources)},
            lambda key: key.endswith("rotary_emb.inv_freq"),
        )
        for name, sources in wanted.items():
            parameter, at = model.get_parameter(name), 0
            if not sources:  # a skip, which does nothing before it is trained
                parameter.zero_()
                continue
            for key, rows in sources:
                target = parameter[at : at + rows]
                target.copy_(checkpoint.read(key, tuple(target.shape)))
                at += rows
            if sources[0][0] in (_EMBEDDING, _HEAD) and new_tokens:
                _fill_rows(parameter[:at], sorted(new_tokens))
            if at < len(parameter):
                _fill(parameter[at:], parameter[:at])
    copy_towers(model)
    return model


@torch.no_grad()
def copy_towers(model: UnifiedModel, known: Collection[str] = ()) -> None:
    """Give pictures the weights of text for what they have of each block for themselves, but for parameters in `known`:
    the model then computes what one without it computes."""
    for name, parameter in model.named_parameters():
        if _TOWER in name and name not in known:
            parameter.copy_(model.get_parameter(name.replace(_TOWER, ".")))


def _has_own_head(checkpoint: Checkpoint, shape: tuple[int, int]) -> bool:
    return _HEAD in checkpoint and not torch.equal(checkpoint.read(_HEAD, shape), checkpoint.read(_EMBEDDING, shape))


def allocate(config: UnifiedConfig, dtype: torch.dtype) -> UnifiedModel:
    """The model with its visual parts drawn from torch's global generator, a modulation at 0 as ever, and memory for
    the rest, which holds nothing yet; `copy_towers` fills what pictures have of the blocks."""
    # A model of one block has the same visual parts, and drawing it costs little.
    fresh = UnifiedModel(replace(config, layers=1, vocab_size=8, specials=SpecialIds()))
    with torch.device("meta"):
        model = UnifiedModel(config)
    model = model.to(dtype).to_empty(device="cpu")
    if config.tied:  # `to_empty` gives each name its own memory
        model.head.weight = model.embed.weight
    with torch.no_grad():
        for find in _NAMED:
            drawn = dict(find(fresh))
            for name, value in find(model):
                if name.startswith("modulation."):
                    value.zero_()
                elif not is_text_parameter(name) and _TOWER not in name:
                    value.copy_(drawn[name])
    return model


def _sources(config: UnifiedConfig, vocab_size: int) -> dict[str, list[tuple[str, int]]]:
    """Each text parameter's tensors in the file, (key, rows) from its top: all of its rows, but in the vocabulary.
    No tensors: it starts at 0."""
    c = config
    inner, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    wanted = {"embed.weight": [(_EMBEDDING, vocab_size)], "norm.weight": [("model.norm.weight", c.width)]}
    if not c.tied:
        wanted["head.weight"] = [(_HEAD, vocab_size)]
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"

        def projections(kind: str) -> list[tuple[str, int]]:
            return [
                (f"{theirs}.self_attn.{part}_proj.{kind}", rows)  # noqa: B023
                for part, rows in (("q", inner), ("k", kv), ("v", kv))
            ]

        wanted |= {
            f"{ours}.attention_norm.weight": [(f"{theirs}.input_layernorm.weight", c.width)],
            f"{ours}.attention.qkv.weight": projections("weight"),
            f"{ours}.attention.out.weight": [(f"{theirs}.self_attn.o_proj.weight", c.width)],
            f"{ours}.mlp_norm.weight": [(f"{theirs}.post_attention_layernorm.weight", c.width)],
            f"{ours}.mlp.gate_up.weight": [(f"{theirs}.mlp.{part}_proj.weight", c.hidden) for part in ("gate", "up")],
            f"{ours}.mlp.down.weight": [(f"{theirs}.mlp.down_proj.weight", c.width)],
        }
        if c.long_skips and i >= c.layers - c.layers // 2:
            wanted[f"{ours}.skip.weight"] = []
        if c.qkv_bias:
            wanted[f"{ours}.attention.qkv.bias"] = projections("bias")
        if c.out_bias:
            wanted[f"{ours}.attention.out.bias"] = [(f"{theirs}.self_attn.o_proj.bias", c.width)]
        if c.qk_norm:
            wanted |= {
                f"{ours}.attention.{part}_norm.weight": [(f"{theirs}.self_attn.{part}_norm.weight", c.head_dim)]
                for part in ("q", "k")
            }
    return wanted


def new_rows(own_vocabulary: int, vocab_size: int, new_tokens: Collection[int]) -> list[int]:
    """The rows of a vocabulary of `vocab_size` tokens that a file of `own_vocabulary` tokens, of which its tokenizer
    lacked `new_tokens`, has no trained weights for."""
    return sorted({*range(own_vocabulary, vocab_size), *(row for row in new_tokens if row < vocab_size)})


def _fill(new: Tensor, known: Tensor) -> None:
    """Rows of new tokens: the known rows' mean, with little of their spread, so that none is likelier than the rest."""
    new.normal_().mul_(known.std(dim=0) * _NEW_ROW_SPREAD).add_(known.mean(dim=0))


def _fill_rows(parameter: Tensor, rows: list[int]) -> None:
    """`_fill` for those `rows` that lie inside the file's vocabulary."""
    inside = [row for row in rows if row < len(parameter)]
    if not inside:
        return
    known = torch.ones(len(parameter), dtype=torch.bool)
    known[inside] = False
    new = torch.empty_like(parameter[inside])
    _fill(new, parameter[known])
    parameter[inside] = new
