"""Small random multimodal models, saved by `transformers` itself, with the ids of their picture codes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from omniloom.models.unified import Segment, UnifiedModel, collate
from omniloom.models.unified.batch import document_length

VOCABULARY, CODES, FIRST = 97, 8, 20
LATENTS, SIDE = 8, 5  # of a BAGEL: channels, and rows of its table of places
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Ids of the codes: neither in order nor side by side.
TOKENS = tuple(FIRST + 2 * (5 * code % CODES) for code in range(CODES))
_CONVOLUTIONS = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}


def chameleon_token(code: int) -> str:
    return f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z"


def chameleon(tokens: Sequence[int] = TOKENS, **fields: Any):
    names = {chameleon_token(code): token for code, token in enumerate(tokens)}
    vq = {"embed_dim": 8, "num_embeddings": len(tokens), "latent_channels": 8, "resolution": 32, **_CONVOLUTIONS}
    config = transformers.ChameleonConfig(
        **{**TEXT, **fields}, vocabulary_map={"<image>": 90, **names}, vq_config={**vq, "attn_type": "vanilla"}
    )
    return transformers.ChameleonForConditionalGeneration(config)


def emu3(**fields: Any):
    names = {f"<|visual token {code:06d}|>": token for code, token in enumerate(TOKENS)}
    vq = {
        "codebook_size": CODES,
        "embed_dim": 4,
        "latent_channels": 4,
        "attn_resolutions": [1],
        "hidden_size": 32,
        "temporal_downsample_factor": 2,
        **_CONVOLUTIONS,
    }
    config = transformers.Emu3Config(
        text_config={**TEXT, **fields},
        vocabulary_map={"<image>": 90, "<|extra_200|>": 91, **names},
        vq_config=vq,
    )
    return transformers.Emu3ForConditionalGeneration(config)


def janus(tie_word_embeddings: bool = False, vq: dict[str, Any] | None = None, **fields: Any):
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(**{**TEXT, **fields}),
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
            "projection_dim": 48,
            "mlp_ratio": 2.0,
            "num_image_tokens": 4,
        },
        vq_config={
            "embed_dim": 6,
            "num_embeddings": CODES,
            "latent_channels": 8,
            "projection_dim": 48,
            "image_token_embed_dim": 48,
            **_CONVOLUTIONS,
            **(vq or {}),
        },
        image_token_id=96,
        tie_word_embeddings=tie_word_embeddings,
    )
    return transformers.JanusForConditionalGeneration(config)


CASES = {
    "chameleon": (chameleon, {}),
    "chameleon, norms after, biases": (chameleon, {"swin_norm": True, "attention_bias": True}),
    "emu3": (emu3, {}),
    "janus": (janus, {}),
    "janus, tied": (janus, {"tie_word_embeddings": True, "head_dim": 16}),
}


@cache
@torch.no_grad()
def built(case: str):
    """The model of a case. Biases and norms are moved from 0 and 1, or nobody would see them missing."""
    build, fields = CASES[case]
    torch.manual_seed(0)
    model = build(**fields)
    for name, parameter in model.named_parameters():
        if "vqmodel" not in name and "vision" not in name.split("generation_head")[0]:
            parameter.uniform_(0.5, 1.5) if "norm" in name and name.endswith("weight") else parameter.normal_(std=0.3)
    return model.eval()


def make(folder: Path, case: str, shard: str = "5GB"):
    """Save the model of a case to the folder."""
    model = built(case)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def read(folder: Path):
    """As its users read it, in fp32."""
    kind = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()


def body(reference):
    """The language model without its head."""
    return getattr(reference.model, "text_model", None) or getattr(reference.model, "language_model", reference.model)


@torch.no_grad()
def hidden_of(reference, embeddings: Tensor) -> Tensor:
    """Behind the last norm, (B, N, width)."""
    return body(reference)(inputs_embeds=embeddings).last_hidden_state


def embed_codes(reference, codes: Tensor) -> Tensor:
    """As `transformers` shows codes to the language model."""
    if hasattr(reference, "prepare_embeddings_for_image_generation"):
        return reference.prepare_embeddings_for_image_generation(codes)
    return reference.get_input_embeddings()(torch.tensor(TOKENS)[codes])


def code_logits(reference, hidden: Tensor) -> Tensor:
    """As `transformers` predicts codes, before it forbids any."""
    if hasattr(reference.model, "generation_head"):
        return reference.model.generation_head(hidden)
    return reference.lm_head(hidden)[..., list(TOKENS)]


def bagel(folder: Path, vocab_size: int = VOCABULARY, latents: int = LATENTS) -> torch.nn.Module:
    """A random BAGEL in its authors' layout, and its tower of texts: a Qwen3 of `transformers` whose outputs have no
    bias is a Qwen2 with QK-norm."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6}
    shape = {**TEXT, "vocab_size": vocab_size}
    config = transformers.Qwen3Config(**shape, head_dim=12, attention_bias=True, rope_parameters=rope)
    model = transformers.Qwen3ForCausalLM(config).eval()
    state = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(std=0.3)
            if name.endswith("o_proj.bias"):
                parameter.zero_()
                continue
            state[f"language_model.{name}"] = parameter.clone()
            if ".layers." in name or ".norm." in name:
                other = torch.empty_like(parameter)
                other.uniform_(0.5, 1.5) if "norm" in name else other.normal_(std=0.3)
                state[f"language_model.{_of_pictures(name)}"] = other
    linears = {"vae2llm": (48, latents), "llm2vae": (latents, 48), "connector.fc1": (48, 8)}
    linears |= {"time_embedder.mlp.0": (48, 256), "time_embedder.mlp.2": (48, 48)}
    for name, (rows, inputs) in linears.items():
        state |= {f"{name}.weight": torch.randn(rows, inputs) * 0.3, f"{name}.bias": torch.randn(rows)}
    state |= {"latent_pos_embed.pos_embed": places(SIDE, 48), "vit_pos_embed.pos_embed": torch.randn(4, 48)}
    state["vit_model.vision_model.post_layernorm.weight"] = torch.randn(8)
    save_file(state, folder / "ema.safetensors")
    save_file({"encoder.conv_in.weight": torch.randn(2, 3)}, folder / "ae.safetensors")
    own = {**shape, "rms_norm_eps": config.rms_norm_eps, "rope_theta": 1e6, "rope_scaling": None, "hidden_act": "silu"}
    own |= {"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": False, "torch_dtype": "bfloat16"}
    (folder / "llm_config.json").write_text(json.dumps(own))
    (folder / "config.json").write_text(json.dumps({"model_type": "bagel", "max_latent_size": SIDE}))
    return model


def _of_pictures(name: str) -> str:
    """How the other tower's tensor is called."""
    parts = name.split(".")
    place = parts.index("mlp") if "mlp" in parts else -2
    parts[place] += "_moe_gen"
    return ".".join(parts)


def places(side: int, width: int) -> Tensor:
    """(side^2, width): MAE's table (arXiv 2111.06377), half of it by the column and half by the row."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    line = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat((line.sin(), line.cos()), dim=1)
    return torch.cat((waves.repeat(side, 1), waves.repeat_interleave(side, 0)), dim=1).float()


@torch.no_grad()
def bagel_forward(folder: Path, pieces: Sequence[Any], around: tuple[int, int]) -> tuple[Tensor, list[Tensor]]:
    """What a BAGEL's two towers compute (arXiv 2505.14683; ByteDance-Seed/Bagel, `Bagel.forward` and
    `Qwen2MoTDecoderLayer`), in float64, of a folder's weights. Pieces: lists of ids; pictures (latents (h*w, C), (h,
    w), time), each between the tokens `around`. Gives the vocabulary's logits (N, V) of every place, and of each
    picture the velocity (h*w, C)."""
    own = json.loads((folder / "llm_config.json").read_text())
    state = {key: value.double() for key, value in load_file(folder / "ema.safetensors").items()}
    heads, kv, eps = own["num_attention_heads"], own["num_key_value_heads"], own["rms_norm_eps"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)

    def norm(name: str, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * state[f"{name}.weight"]

    def embedded(ids: Sequence[int]) -> Tensor:
        return state["language_model.model.embed_tokens.weight"][list(ids)]

    def entered(latents: Tensor, shape: tuple[int, int], time: float) -> Tensor:
        angles = time * torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float64) / 128)
        waves = torch.cat((angles.cos(), angles.sin()))
        told = linear("time_embedder.mlp.2", torch.nn.functional.silu(linear("time_embedder.mlp.0", waves)))
        side = math.isqrt(len(state["latent_pos_embed.pos_embed"]))
        cells = [row * side + column for row in range(shape[0]) for column in range(shape[1])]
        return linear("vae2llm", latents.double()) + told + state["latent_pos_embed.pos_embed"][cells]

    inputs, at, group, is_latent, following = [], [], [], [], 0
    for number, piece in enumerate(pieces):
        if isinstance(piece, list):
            inputs.append(embedded(piece))
            at += range(following, following + len(piece))
            group += [-1] * len(piece)
            is_latent += [False] * len(piece)
            following += len(piece)
        else:
            inputs += [embedded(around[:1]), entered(*piece), embedded(around[1:])]
            count = len(piece[0])
            at += [following] * (count + 2)
            group += [number] * (count + 2)
            is_latent += [False, *[True] * count, False]
            following += 1
    x, which, groups = torch.cat(inputs), torch.tensor(is_latent)[:, None], torch.tensor(group)
    n = len(x)
    sees = torch.ones(n, n).tril().bool() | (groups[:, None] == groups) & (groups >= 0)

    def towers(function, name: str, x: Tensor, mark: str) -> Tensor:
        """Both towers at all places, each place's own."""
        other = function(name.replace(mark, f"{mark}_moe_gen"), x)
        return torch.where(which if x.ndim == 2 else which[..., None], other, function(name, x))

    d = state["language_model.model.layers.0.self_attn.q_norm.weight"].shape[0]
    turns = torch.outer(torch.tensor(at).double(), own["rope_theta"] ** (-torch.arange(0, d, 2).double() / d))
    cos, sin = (torch.cat((a, a), -1)[:, None] for a in (turns.cos(), turns.sin()))

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    for i in range(own["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}."
        h = towers(norm, f"{layer}input_layernorm", x, "input_layernorm")
        q, k, v = (towers(linear, f"{layer}self_attn.{p}_proj", h, f"{p}_proj").view(n, -1, d) for p in "qkv")
        q, k = (turned(towers(norm, f"{layer}self_attn.{p}_norm", a, f"{p}_norm")) for p, a in (("q", q), ("k", k)))
        k, v = (a.repeat_interleave(heads // kv, 1) for a in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(d)
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -torch.inf).softmax(-1), v).flatten(1)
        x = x + towers(linear, f"{layer}self_attn.o_proj", mixed, "o_proj")
        h = towers(norm, f"{layer}post_attention_layernorm", x, "post_attention_layernorm")
        gate, up = (towers(linear, f"{layer}mlp.{p}_proj", h, "mlp") for p in ("gate", "up"))
        x = x + towers(linear, f"{layer}mlp.down_proj", torch.nn.functional.silu(gate) * up, "mlp")
    x = towers(norm, "language_model.model.norm", x, "norm")
    velocities = [linear("llm2vae", x[(groups == number) & which[:, 0]]) for number in sorted({*group} - {-1})]
    return linear("language_model.lm_head", x).float(), [velocity.float() for velocity in velocities]


def bagel_difference(model: UnifiedModel, folder: Path) -> tuple[float, float]:
    """Of logits and velocities in one document, with a clean picture and one at a time, from those of a BAGEL."""
    generator, channels = torch.Generator().manual_seed(1), model.config.latent_dim
    shown, noisy = (torch.randn(count, channels, generator=generator) for count in (2 * 3, 5 * 4))
    specials, time = model.config.specials, 0.37
    texts = [1, 11, 60, 12], [14, 80], [13, 33, 2]
    document = [
        Segment("text", ids=texts[0]),
        Segment("visual", latents=shown.numpy(), grid=(1, 2, 3), loss=False),
        Segment("text", ids=texts[1]),
        Segment("visual", latents=noisy.numpy(), grid=(1, 5, 4)),
        Segment("text", ids=texts[2]),
    ]
    batch = collate([[document]], document_length(document) + 3, model.config)
    part = batch.parts["latents"]
    with torch.no_grad():
        times = {"latents": torch.tensor([[0.0, time]])}
        text, outputs = model(batch, {"latents": part.values}, times, {"latents": part.index})
    pieces = [texts[0], (shown, (2, 3), 0.0), texts[1], (noisy, (5, 4), time), texts[2]]
    logits, velocities = bagel_forward(folder, pieces, (specials.boi, specials.eoi))
    assert logits.abs().max() > 1 and min(v.abs().max() for v in velocities) > 1
    assert len(text) == sum(map(len, texts)) - 1 + 1  # but the first, and the <boi> of the target
    known = min(text.shape[1], logits.shape[1])  # new tokens may have been added
    of_texts = text[:, :known] - logits[batch.label_index, :known]
    return float(of_texts.abs().max()), float((outputs["latents"] - torch.cat(velocities)).abs().max())


def read_bagel(folder: Path) -> torch.nn.Module:
    """The tower of texts of a folder, by the names that its authors' code asks for."""
    own = json.loads((folder / "llm_config.json").read_text())
    rope = {"rope_type": "default", "rope_theta": own["rope_theta"]}
    shape = {key: own[key] for key in (*TEXT, "rms_norm_eps")}
    config = transformers.Qwen3Config(**shape, head_dim=12, attention_bias=True, rope_parameters=rope)
    model = transformers.Qwen3ForCausalLM(config).eval()
    state, prefix = load_file(folder / "ema.safetensors"), "language_model."
    known = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    missing, _ = model.load_state_dict(known, strict=False)
    assert all(name.endswith("o_proj.bias") for name in missing)
    with torch.no_grad():
        for name in missing:
            model.get_parameter(name).zero_()
    return model
