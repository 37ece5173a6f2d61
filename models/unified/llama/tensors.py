"""Which tensors of a checkpoint are which parameters of a `UnifiedModel`: one table, read by `load` and written back by
`write`. In: configs. Out: names and shapes. Standard library only.

Nothing is permuted: `rotate` pairs channel c with c + head_dim / 2 as these checkpoints do.
"""

from __future__ import annotations

from dataclasses import dataclass

from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.llama.families import Codes, Names


@dataclass(frozen=True)
class Source:
    """A tensor of the file: its name, its shape there, and which of its rows are meant; none: all of them."""

    key: str
    shape: tuple[int, ...]
    rows: tuple[int, ...] = ()


Table = dict[str, list[Source]]
LATENTS_IN, LATENTS_PLACES = "vae2llm", "latent_pos_embed.pos_embed"
_CODES_IN, _CODES_OUT = "model.generation_embeddings", "model.generation_head"


def tensors(
    config: UnifiedConfig, names: Names, vocab_size: int, codes: Codes | None, tower: str | None = None
) -> Table:
    """By parameter the tensors whose rows, one after the other, it holds from its top: all of its rows, but in the
    vocabulary, of which the file has `vocab_size`, and in codes, whose last is the mask, which few files have. No
    tensors: it starts at 0.
    tower: the mark of that of latents, where it is read."""
    c = config
    head = names.embedding if c.tied else names.head
    table = {
        "embed.weight": [Source(names.embedding, (vocab_size, c.width))],
        **_norm(c, "norm", f"{names.body}{names.norm}"),
    }
    if not c.tied:
        table["head.weight"] = [Source(head, (vocab_size, c.width))]
    if c.head_bias:
        table["head.bias"] = [Source(names.head_bias, (vocab_size,))]
    for i in range(c.layers):
        table |= _block(c, names, f"blocks.{i}", f"{names.body}layers.{i}")
        if c.long_skips and i >= c.layers - c.layers // 2:
            table[f"blocks.{i}.skip.weight"] = []
    if tower is not None:
        table |= _latents(c, names, tower)
    if codes is not None and c.codebook_size is not None:
        table |= _norm(c, "code_norm", f"{names.body}{names.norm}")
        table |= _own_codes(c, codes) if codes.dim else _token_codes(c, names, head, vocab_size, codes)
    return table


def _latents(c: UnifiedConfig, names: Names, tower: str) -> Table:
    """The tower of latents, a second set of each block's weights, and what stands around it."""
    table = _norm(c, "visual_norm", f"{names.body}{names.norm}{tower}")
    for i in range(c.layers):
        table |= _block(c, names, f"blocks.{i}.visual", f"{names.body}layers.{i}", tower)
    latents = c.latent_dim or 0
    linears = {
        "visual_in": (LATENTS_IN, c.width, latents),
        "visual_out": ("llm2vae", latents, c.width),
        "time.mlp.0": ("time_embedder.mlp.0", c.width, c.time_dim),
        "time.mlp.2": ("time_embedder.mlp.2", c.width, c.width),
    }
    for ours, (theirs, rows, inputs) in linears.items():
        table[f"{ours}.weight"] = [Source(f"{theirs}.weight", (rows, inputs))]
        table[f"{ours}.bias"] = [Source(f"{theirs}.bias", (rows,))]
    return table


def _norm(c: UnifiedConfig, ours: str, theirs: str) -> Table:
    kinds = ("weight", "bias") if c.norm_kind == "layer" else ("weight",)
    return {f"{ours}.{kind}": [Source(f"{theirs}.{kind}", (c.width,))] for kind in kinds}


def _block(c: UnifiedConfig, names: Names, ours: str, theirs: str, mark: str = "") -> Table:
    """`mark` stands behind the names of what a tower has for itself."""
    inner, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim

    def projections(*axes: int, kind: str = "weight") -> list[Source]:
        sizes = (("q", inner), ("k", kv), ("v", kv))
        return [Source(f"{theirs}.self_attn.{part}_proj{mark}.{kind}", (rows, *axes)) for part, rows in sizes]

    out = f"{theirs}.self_attn.{names.out}{mark}"
    table = {
        **_norm(c, f"{ours}.attention_norm", f"{theirs}.input_layernorm{mark}"),
        f"{ours}.attention.qkv.weight": projections(c.width),
        f"{ours}.attention.out.weight": [Source(f"{out}.weight", (c.width, inner))],
        **_feed_forward(c, f"{ours}.mlp", f"{theirs}.mlp{mark}"),
    }
    if not c.parallel:
        table |= _norm(c, f"{ours}.mlp_norm", f"{theirs}.post_attention_layernorm{mark}")
    if c.qkv_bias:
        table[f"{ours}.attention.qkv.bias"] = projections(kind="bias")
    if c.out_bias:
        table[f"{ours}.attention.out.bias"] = [Source(f"{out}.bias", (c.width,))]
    if c.qk_norm:
        for part, norm, heads in zip("qk", names.head_norms, (c.heads, c.kv_heads)):
            shape = (heads, c.head_dim) if c.qk_norm_kind == "layer" else (c.head_dim,)
            for kind in ("weight",) if c.qk_norm_kind == "rms" else ("weight", "bias"):
                table[f"{ours}.attention.{part}_norm.{kind}"] = [
                    Source(f"{theirs}.self_attn.{norm}{mark}.{kind}", shape)
                ]
    return table


def _feed_forward(c: UnifiedConfig, ours: str, theirs: str) -> Table:
    if c.feed_forward == "gelu":
        return {
            f"{ours}.up.weight": [Source(f"{theirs}.fc1.weight", (c.hidden, c.width))],
            f"{ours}.up.bias": [Source(f"{theirs}.fc1.bias", (c.hidden,))],
            f"{ours}.down.weight": [Source(f"{theirs}.fc2.weight", (c.width, c.hidden))],
            f"{ours}.down.bias": [Source(f"{theirs}.fc2.bias", (c.width,))],
        }
    return {
        f"{ours}.gate_up.weight": [
            Source(f"{theirs}.{part}_proj.weight", (c.hidden, c.width)) for part in ("gate", "up")
        ],
        f"{ours}.down.weight": [Source(f"{theirs}.down_proj.weight", (c.width, c.hidden))],
    }


def _token_codes(c: UnifiedConfig, names: Names, head: str, vocab_size: int, codes: Codes) -> Table:
    shape = (vocab_size, c.width)
    entering = codes.tokens if codes.mask is None else (*codes.tokens, codes.mask)
    table = {
        "code_in.weight": [Source(names.embedding, shape, entering)],
        "code_out.weight": [Source(head, shape, codes.tokens)],
    }
    if c.head_bias:
        table["code_out.bias"] = [Source(names.head_bias, (vocab_size,), codes.tokens)]
    return table


def _own_codes(c: UnifiedConfig, codes: Codes) -> Table:
    """An embedding, an aligner of two Linear and a head of two; Sequentials of ours with a GELU in between."""
    dim = codes.dim or 0
    table = {"code_in.0.weight": [Source(f"{_CODES_IN}.weight", (codes.size, dim))]}
    linears = {
        "code_in.1": ("model.generation_aligner.fc1", c.width, dim),
        "code_in.3": ("model.generation_aligner.hidden_layers.0", c.width, c.width),
        "code_out.0": (f"{_CODES_OUT}.proj_out", c.width, c.width),
        "code_out.2": (f"{_CODES_OUT}.vision_head", codes.size, c.width),
    }
    for ours, (theirs, rows, inputs) in linears.items():
        table[f"{ours}.weight"] = [Source(f"{theirs}.weight", (rows, inputs))]
        table[f"{ours}.bias"] = [Source(f"{theirs}.bias", (rows,))]
    return table
