"""Write a model back into the layout of the checkpoint that it started from, so that `transformers` loads it. In: a
`UnifiedModel` and the local folder of the start. Out: a folder with the start's config, its shards with the model's
weights in place of its own, and whatever else it holds: vision towers and picture tokenizers stay to the last bit.

What pictures' codes are predicted through, `code_norm`, is the text's last norm there: W diag(g) with g = code_norm /
norm takes its place, which computes the same; what biases of LayerNorms differ by goes into that of the head. Codes
that are tokens are chosen among codes alone here, so that training leaves a vector that all rows of `code_out` share
undecided, while texts there are predicted against all tokens: the mean of the rows is that of the codes' rows in the
text head, where training drove them away from texts. All codes' logits at a place move by one number, which no choice
among them sees; what an adapter left as it was moves not at all.

Errors: ValueError naming the file and the key, or the field of `UnifiedConfig` that the start's family cannot have.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omniloom.models.hf.config_json import INDEX, read_json
from omniloom.models.hf.weights import open_checkpoint
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.llama.config import architecture, tower_of
from omniloom.models.unified.llama.families import Described, described
from omniloom.models.unified.llama.load import check_latents, folder_values, names_in
from omniloom.models.unified.llama.tensors import Table, tensors
from omniloom.models.unified.model import UnifiedModel

# Beside config and weights: tokenizers, processors, a BAGEL's autoencoder.
COPIED = ("*.json", "*.txt", "*.jinja", "*.model", "ae.safetensors")
_DTYPES = ("dtype", "torch_dtype")
_NOWHERE = ("long_skips", "mup")  # what changes texts and no family has
_OF_CODES = ("modality_experts", "joined_frame")  # what changes pictures alone


def left_out(config: UnifiedConfig, values: Any, where: str) -> tuple[str, ...]:
    """The representations of pictures that the start's family has no place for."""
    found = described(values, where)
    kept = {"codes": found.codes, "latents": tower_of(found.family, config)}
    return tuple(name for name in config.representations if not kept.get(name))


@torch.no_grad()
def write_back(model: UnifiedModel, start: str | Path, folder: str | Path) -> None:
    """The folder is made if need be. Weights have the model's type, and the config says so; other tensors keep
    theirs."""
    start, folder = Path(start), Path(folder)
    where = str(start / "config.json")
    values = folder_values(start)
    found = described(values, where)
    _check(model.config, values, where, found)
    codes = found.codes if model.config.codebook_size is not None else None
    # Codes that are tokens have rows of their own in embedding and head, which one matrix could not hold.
    config = replace(model.config, tied=model.config.tied and not (codes and codes.tokens))
    folder.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(start) as checkpoint:
        names = names_in(checkpoint, found.family)
        if tower := tower_of(found.family, config):
            check_latents(checkpoint, config)
        made = _written(model, tensors(config, names, config.vocab_size, codes, tower))
        extra = {key: value for key, value in made.items() if key not in checkpoint}
        if config.tied:
            made.pop(names.head, None)
        dropped = {names.head} if config.tied else set()
        shards = checkpoint.shards()
        for number, (file, keys) in enumerate(shards.items()):
            held = {key: made[key] if key in made else checkpoint.tensor(key) for key in keys if key not in dropped}
            if number == len(shards) - 1:
                held |= extra
            _save(held, folder / file.name)
            shards[file] = list(held)
    if checkpoint.where.name == INDEX:
        _write_index(folder, shards, start)
    document, own_file = _document(values, config, model, found), found.family.text_file
    told = json.dumps(document[str(found.family.text)] if own_file else document, indent=2)
    if not found.family.is_fixed:
        (folder / (own_file or "config.json")).write_text(told, encoding="utf-8")
    for file in (file for pattern in COPIED for file in sorted(start.glob(pattern))):
        if not (folder / file.name).exists() and file.name != INDEX:
            shutil.copyfile(file, folder / file.name)


def _check(config: UnifiedConfig, values: Any, where: str, found: Described) -> None:
    decided = architecture(values, where)
    for name, value in decided.items():
        own = getattr(config, name)
        if own == value or name == "tied":
            continue
        if name == "vocab_size":
            if own < value or found.family.is_fixed:
                raise ValueError(f"UnifiedConfig.vocab_size: {where} has {value} tokens, the model {own}")
        else:
            raise ValueError(f"UnifiedConfig.{name}: {where} has {value!r}, the model {own!r}")
    for name in (*_NOWHERE, *(_OF_CODES if config.codebook_size is not None and found.codes else ())):
        if (value := getattr(config, name)) and name not in decided:
            raise ValueError(f"UnifiedConfig.{name}: {where} has no place for it, the model {value!r}")
    if found.codes and config.codebook_size is not None and config.has_experts:
        raise ValueError(
            f"UnifiedConfig.modality_experts: {where} has no place for what pictures have for themselves, the model "
            f"{config.modality_experts!r}"
        )
    if found.codes and config.codebook_size not in (None, found.codes.size):
        raise ValueError(
            f"UnifiedConfig.codebook_size: {where} has {found.codes.size}, the model {config.codebook_size}"
        )


def _written(model: UnifiedModel, table: Table) -> dict[str, Tensor]:
    """The file's tensors, of the model's parameters. Rows that several share are the last one's."""
    made: dict[str, Tensor] = {}
    for name, sources in table.items():
        if name.startswith("code_norm."):
            continue
        value, at = _parameter(model, name, sources[0].rows if sources else ()), 0
        for source in sources:
            count = len(source.rows) or torch.Size(source.shape).numel() // value[0].numel()
            part = value[at : at + count]
            at += count
            if not source.rows:
                made[source.key] = part.reshape(source.shape).clone()
            else:
                made[source.key][list(source.rows)] = part
    return made


def _parameter(model: UnifiedModel, name: str, tokens: Sequence[int]) -> Tensor:
    if name not in ("code_out.weight", "code_out.bias", "code_out.0.weight"):
        return _held(model, name)
    value = _behind_the_last_norm(model, name)
    if tokens:
        known = _held(model, name.replace("code_out", "head"))[list(tokens)]
        if not torch.equal(value, known):
            value = value - value.mean(0) + known.mean(0)
    return value


def _held(model: UnifiedModel, name: str) -> Tensor:
    return model.get_parameter(name).detach().cpu()


def _behind_the_last_norm(model: UnifiedModel, name: str) -> Tensor:
    """What takes the place of a parameter that reads what `code_norm` gives, where it reads what `norm` gives."""
    owner, _, kind = name.rpartition(".")
    weight = _held(model, f"{owner}.weight")
    norm, own = (_held(model, key).float() for key in ("norm.weight", "code_norm.weight"))
    if not torch.equal(norm, own):
        if not norm.all():
            raise ValueError("norm.weight: holds a 0, behind which the codes' own norm cannot be written")
        weight = (weight.float() * (own / norm)).to(weight.dtype)
    if kind == "weight":
        return weight
    bias = _held(model, name)
    if model.config.norm_kind == "layer":
        norm, own = (_held(model, key).float() for key in ("norm.bias", "code_norm.bias"))
        moved = _held(model, f"{owner}.weight").float() @ own - weight.float() @ norm
        bias = (bias.float() + moved).to(bias.dtype) if moved.any() else bias
    return bias


def _save(tensors: dict[str, Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata={"format": "pt"})


def _write_index(folder: Path, shards: dict[Path, list[str]], start: Path) -> None:
    index = read_json(start / INDEX)
    index["weight_map"] = {key: file.name for file, keys in shards.items() for key in sorted(keys)}
    sizes: Iterable[int] = ((folder / file.name).stat().st_size for file in shards)
    index["metadata"] = {**(index.get("metadata") or {}), "total_size": sum(sizes)}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _document(values: Any, config: UnifiedConfig, model: UnifiedModel, found: Described) -> dict[str, Any]:
    """The start's config.json, as far as the model's differs."""
    document = json.loads(json.dumps(values))
    text = document[found.family.text] if found.family.text else document
    text["vocab_size"] = config.vocab_size
    document["tie_word_embeddings"] = text["tie_word_embeddings"] = config.tied
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    for part in (document, text):
        for key in _DTYPES:
            if key in part:
                part[key] = dtype
    if not {*_DTYPES} & {*document}:
        document["dtype"] = dtype
    return document
