"""Small random multimodal models, saved by `transformers` itself, with the ids of their picture codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

VOCABULARY, CODES, FIRST = 97, 8, 20
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


def bagel(folder: Path, vocab_size: int = VOCABULARY) -> torch.nn.Module:
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
                state[f"language_model.{_of_pictures(name)}"] = torch.randn_like(parameter)
    for name, rows in {"vae2llm": 48, "llm2vae": 8, "time_embedder.mlp.0": 48, "connector.fc1": 48}.items():
        state |= {f"{name}.weight": torch.randn(rows, 8), f"{name}.bias": torch.randn(rows)}
    state |= {"latent_pos_embed.pos_embed": torch.randn(4, 48), "vit_pos_embed.pos_embed": torch.randn(4, 48)}
    state["vit_model.vision_model.post_layernorm.weight"] = torch.randn(8)
    save_file(state, folder / "ema.safetensors")
    save_file({"encoder.conv_in.weight": torch.randn(2, 3)}, folder / "ae.safetensors")
    own = {**shape, "rms_norm_eps": config.rms_norm_eps, "rope_theta": 1e6, "rope_scaling": None, "hidden_act": "silu"}
    own |= {"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": False, "torch_dtype": "bfloat16"}
    (folder / "llm_config.json").write_text(json.dumps(own))
    (folder / "config.json").write_text(json.dumps({"model_type": "bagel", "max_latent_size": 2}))
    return model


def _of_pictures(name: str) -> str:
    """How the other tower's tensor is called."""
    parts = name.split(".")
    place = parts.index("mlp") if "mlp" in parts else -2
    parts[place] += "_moe_gen"
    return ".".join(parts)


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
