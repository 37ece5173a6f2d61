"""Start from a Llama-shaped checkpoint. In: a folder as `transformers` saves it, with config.json and
model.safetensors (or shards and model.safetensors.index.json). Out: a `UnifiedModel` whose text part is the
checkpoint's, with its picture codes or its tower of latents where it has some and they are asked for, and whose other
visual parts are fresh.

`models.unified.llama.families` says which architectures are read. Weights are read through a memory map, one tensor at
a time, straight into place, so that loading takes the model's own memory and no more.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniloom.models.hf.config_json import read_json
from omniloom.models.hf.weights import Checkpoint, open_checkpoint
from omniloom.models.unified.config import SpecialIds, UnifiedConfig
from omniloom.models.unified.llama.config import config_from_llama, tower_of
from omniloom.models.unified.llama.families import Family, Names, described, read_values
from omniloom.models.unified.llama.tensors import LATENTS_IN, LATENTS_PLACES, Source, tensors
from omniloom.models.unified.model import UnifiedModel
from omniloom.models.unified.positions import cells, sinusoids

_TEXT = ("embed.", "blocks.", "norm.", "head.")
_TOWER = ".visual."
_NAMED = (torch.nn.Module.named_parameters, torch.nn.Module.named_buffers)
_VOCABULARY = ("embed.weight", "head.weight", "head.bias")
_NEW_ROW_SPREAD = 0.1
_ROUNDED = 0.01  # sinusoids in half precision


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
    With `codebook_size` codes are read where the file has some; the mask's row starts as a new one where the file has
    none. With `latent_dim` a tower of latents is read where the family has one, unless `rope_scheme` says otherwise.
    Other visual parts are drawn from torch's global generator, for `latent_dim` channels.

    new_tokens                       ids that the checkpoint's tokenizer did not have: files pad the vocabulary with
                                     rows that nothing trained, which then start as new rows do
    specials, vocab_size, overrides  as in `models.unified.llama.config.config_from_llama`
    dtype                            of the model; files in fp32, bf16 and fp16 are converted
    ValueError naming the file and the key: an architecture or rotary scaling that is not read, a tensor that is
    missing, unknown, of a wrong shape or dtype, a file that cannot be read.
    """
    folder = Path(folder)
    document = folder_values(folder)
    config = config_from_llama(
        document,
        str(folder / "config.json"),
        latent_dim=latent_dim,
        specials=specials,
        vocab_size=vocab_size,
        **overrides,
    )
    found = described(document, str(folder / "config.json"))
    own_vocabulary = found.text.integer("vocab_size")
    with open_checkpoint(folder) as checkpoint, torch.no_grad():
        names = names_in(checkpoint, found.family)
        if config.tied and _has_own_head(checkpoint, names, (own_vocabulary, config.width)):
            config = replace(config, tied=False)
        model = allocate(config, dtype)
        if tower := tower_of(found.family, config):
            check_latents(checkpoint, config)
            _check_sinusoids(checkpoint, config.width)
        wanted = tensors(config, names, own_vocabulary, found.codes, tower)
        for name in (name for find in _NAMED for name, _ in find(model)):
            if is_text_parameter(name) and name not in wanted:
                raise ValueError(f"{folder}: no Llama-shaped checkpoint has {name}, which the config asks for")
        # Old files hold rotary tables, which follow from the config, and some a copy of the tied head.
        checkpoint.refuse_unknown(
            {names.head, *(source.key for sources in wanted.values() for source in sources)},
            lambda key: key.endswith("rotary_emb.inv_freq") or found.family.is_other(key),
        )
        for name, sources in wanted.items():
            _read(model.get_parameter(name), sources, checkpoint, new_tokens if name in _VOCABULARY else ())
    copy_towers(model, wanted)
    return model


def check_latents(checkpoint: Checkpoint, config: UnifiedConfig) -> None:
    """ValueError where latents of a checkpoint's tower have another number of channels than the model's."""
    found = checkpoint.shape(f"{LATENTS_IN}.weight")[-1]
    if found != config.latent_dim:
        raise ValueError(
            f"{checkpoint.where}: {LATENTS_IN}.weight: has latents of {found} channels, the model's have "
            f"{config.latent_dim}: they are of another visual tokenizer; another rope_scheme than one_place starts anew"
        )


def _check_sinusoids(checkpoint: Checkpoint, width: int) -> None:
    """ValueError where what a checkpoint adds for rows and columns are not the sinusoids of `positions`."""
    rows, _ = checkpoint.shape(LATENTS_PLACES)
    side = math.isqrt(rows)
    table = checkpoint.read(LATENTS_PLACES, (side * side, width)).float()
    if not torch.allclose(table, sinusoids(torch.from_numpy(cells((1, side, side))), width), atol=_ROUNDED, rtol=0):
        raise ValueError(f"{checkpoint.where}: {LATENTS_PLACES}: expected sinusoids of rows and columns, as it began")


@torch.no_grad()
def copy_towers(model: UnifiedModel, known: Collection[str] = ()) -> None:
    """Give pictures the weights of text for what they have of each block for themselves, but for parameters in `known`:
    the model then computes what one without it computes."""
    for name, parameter in model.named_parameters():
        if _TOWER in name and name not in known:
            parameter.copy_(model.get_parameter(name.replace(_TOWER, ".")))


def _read(parameter: Tensor, sources: list[Source], checkpoint: Checkpoint, new_tokens: Collection[int]) -> None:
    if not sources:  # a skip, which does nothing before it is trained
        parameter.zero_()
        return
    at = 0
    for source in sources:
        value = checkpoint.read(source.key, source.shape)
        value = (value[list(source.rows)] if source.rows else value).reshape(-1, *parameter.shape[1:])
        parameter[at : at + len(value)] = value
        at += len(value)
    if new_tokens:
        _fill_rows(parameter[:at], sorted(new_tokens))
    if at < len(parameter):
        _fill(parameter[at:], parameter[:at])


def folder_values(folder: Path) -> Any:
    """What a local folder says that it is. ValueError naming a file that cannot be read."""
    return read_values(
        lambda name: read_json(folder / name) if name == "config.json" or (folder / name).exists() else None
    )


def names_in(checkpoint: Checkpoint, family: Family) -> Names:
    """How the checkpoint calls its tensors: the first of the family's ways that it has the embedding by."""
    return next((names for names in family.names if names.embedding in checkpoint), family.names[0])


def _has_own_head(checkpoint: Checkpoint, names: Names, shape: tuple[int, int]) -> bool:
    return names.head in checkpoint and not torch.equal(
        checkpoint.read(names.head, shape), checkpoint.read(names.embedding, shape)
    )


def allocate(config: UnifiedConfig, dtype: torch.dtype) -> UnifiedModel:
    """The model with its visual parts drawn from torch's global generator, a modulation at 0 as ever, and memory for
    the rest, which holds nothing yet; `copy_towers` fills what pictures have of the blocks."""
    # A model of one block has the same visual parts, and drawing it costs little.
    fresh = UnifiedModel(replace(config, layers=1, attention_every=None, vocab_size=8, specials=SpecialIds()))
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
