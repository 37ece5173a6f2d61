"""Start from a Llama-shaped checkpoint. In: a folder as `transformers` saves it, with config.json and
model.safetensors (or shards and model.safetensors.index.json). Out: a `UnifiedModel` whose text part is the
checkpoint's and whose visual parts are fresh.

`models.unified.llama_config` says which architectures are read. Nothing is permuted: `rotate` pairs channel c with
c + head_dim / 2 as these checkpoints do. Weights are read through a memory map, one tensor at a time, straight into
place, so that loading takes the model's own memory and no more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.unified.config import SpecialIds, UnifiedConfig
from models.unified.llama_config import config_from_llama
from models.unified.model import UnifiedModel

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_TEXT = ("embed.", "blocks.", "norm.", "head.")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NAMED = (torch.nn.Module.named_parameters, torch.nn.Module.named_buffers)
_NEW_ROW_SPREAD = 0.1


def is_text_parameter(name: str) -> bool:
    """Whether a parameter of `UnifiedModel` is of the part that a language model's checkpoint fills, skips between its
    blocks included; the others take pictures in and give them out."""
    return name.startswith(_TEXT)


def load_llama(
    folder: str | Path,
    *,
    latent_dim: int = 1,
    specials: SpecialIds | None = None,
    vocab_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> UnifiedModel:
    """The model of a local folder, on the CPU, in training mode.

    `text_logits(ids)` equals `transformers`' logits; the vocabulary is the file's unless `specials` or `vocab_size`
    ask for more rows. New rows start near the mean of the others. Visual parts are drawn from torch's global
    generator, for `latent_dim` channels.

    specials, vocab_size, overrides  as in `models.unified.llama_config.config_from_llama`
    dtype                            of the model; files in fp32, bf16 and fp16 are converted
    ValueError naming the file and the key: an architecture or rotary scaling that is not read, a tensor that is
    missing, unknown, of a wrong shape or dtype, a file that cannot be read.
    """
    folder = Path(folder)
    document = read_json(folder / "config.json")
    config = config_from_llama(document, str(folder / "config.json"), latent_dim=latent_dim, specials=specials,
                               vocab_size=vocab_size, **overrides)
    model = _allocate(config, dtype)
    own_vocabulary = document["vocab_size"]
    with _open(folder) as checkpoint, torch.no_grad():
        wanted = _sources(config, own_vocabulary)
        for name in (name for find in _NAMED for name, _ in find(model)):
            if is_text_parameter(name) and name not in wanted:
                raise ValueError(f"{folder}: no Llama-shaped checkpoint has {name}, which the config asks for")
        checkpoint.refuse_unknown(key for sources in wanted.values() for key, _ in sources)
        for name, sources in wanted.items():
            parameter, at = model.get_parameter(name), 0
            if not sources:  # a skip, which does nothing before it is trained
                parameter.zero_()
                continue
            for key, rows in sources:
                target = parameter[at:at + rows]
                target.copy_(checkpoint.read(key, tuple(target.shape)))
                at += rows
            if at < len(parameter):
                _fill(parameter[at:], parameter[:at])
    return model


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _allocate(config: UnifiedConfig, dtype: torch.dtype) -> UnifiedModel:
    """The model with its visual parts initialised and memory for the rest."""
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
                if not is_text_parameter(name):
                    value.copy_(drawn[name])
    return model


def _sources(config: UnifiedConfig, vocab_size: int) -> dict[str, list[tuple[str, int]]]:
    """Each text parameter's tensors in the file, (key, rows) from its top: all of its rows, but in the vocabulary.
    No tensors: it starts at 0."""
    c = config
    inner, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    wanted = {"embed.weight": [("model.embed_tokens.weight", vocab_size)],
              "norm.weight": [("model.norm.weight", c.width)]}
    if not c.tied:
        wanted["head.weight"] = [("lm_head.weight", vocab_size)]
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}", f"model.layers.{i}"

        def projections(kind: str) -> list[tuple[str, int]]:
            return [(f"{theirs}.self_attn.{part}_proj.{kind}", rows)  # noqa: B023
                    for part, rows in (("q", inner), ("k", kv), ("v", kv))]

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
            wanted |= {f"{ours}.attention.{part}_norm.weight": [(f"{theirs}.self_attn.{part}_norm.weight", c.head_dim)]
                       for part in ("q", "k")}
    return wanted


def _fill(new: Tensor, known: Tensor) -> None:
    """Rows of new tokens: the known rows' mean, with little of their spread, so that none is likelier than the rest."""
    new.normal_().mul_(known.std(dim=0) * _NEW_ROW_SPREAD).add_(known.mean(dim=0))


class _Checkpoint:
    """The tensors of a folder by key. `where` is the file that says which there are."""

    def __init__(self, where: Path, files: dict[str, Path], handles: dict[Path, Any]):
        self.where, self._files, self._handles = where, files, handles

    def refuse_unknown(self, known: Iterable[str]) -> None:
        """A tensor that nobody asks for would have changed the result. Old files hold rotary tables, which follow
        from the config, and some a copy of the tied head."""
        known = {*known, "lm_head.weight"}
        for key in self._files:
            if key not in known and not key.endswith("rotary_emb.inv_freq"):
                raise ValueError(f"{self.where}: {key}: config.json has no place for this tensor")

    def read(self, key: str, shape: tuple[int, ...]) -> Tensor:
        if key not in self._files:
            raise ValueError(f"{self.where}: {key}: missing")
        file = self._files[key]
        handle = self._handles[file]
        if key not in handle.keys():
            raise ValueError(f"{file}: {key}: missing")
        found = tuple(handle.get_slice(key).get_shape())
        if found != shape:
            raise ValueError(f"{file}: {key}: expected shape {shape}, got {found}")
        tensor = handle.get_tensor(key)
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{file}: {key}: expected float32, bfloat16 or float16, got {tensor.dtype}")
        return tensor


@contextmanager
def _open(folder: Path) -> Iterator[_Checkpoint]:
    """The folder's safetensors, memory-mapped while the block runs."""
    from safetensors import SafetensorError, safe_open

    single, index = folder / WEIGHTS, folder / INDEX
    weight_map = None
    if not single.is_file():
        if not index.is_file():
            raise ValueError(f"{folder}: holds neither {WEIGHTS} nor {INDEX}; other formats are not read")
        document = read_json(index)
        weight_map = document.get("weight_map") if isinstance(document, dict) else None
        if not isinstance(weight_map, dict) or not all(
                isinstance(name, str) and Path(name).name == name for name in weight_map.values()):
            raise ValueError(f"{index}: weight_map: expected an object of tensors' names and files of this folder")
    handles: dict[Path, Any] = {}
    with ExitStack() as stack:
        for path in [single] if weight_map is None else sorted({folder / name for name in weight_map.values()}):
            try:
                handles[path] = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{path}: cannot be read: {error}") from error
        if weight_map is None:
            yield _Checkpoint(single, dict.fromkeys(handles[single].keys(), single), handles)
        else:
            yield _Checkpoint(index, {key: folder / name for key, name in weight_map.items()}, handles)
