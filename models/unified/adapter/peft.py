"""An adapter alone, in the files that the PEFT library reads: adapter_config.json and adapter_model.safetensors, on a
Llama, Mistral, Qwen or Phi folder. In: the adapter's weights by our names. Out: the folder. `safetensors` is imported
when it is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from omniloom.models.unified.adapter.config import AdapterConfig
from omniloom.models.unified.config import UnifiedConfig
from omniloom.models.unified.llama.families import Names

_OWNERS = {name: "self_attn" for name in ("q_proj", "k_proj", "v_proj", "o_proj")}


def is_whole(adapter: AdapterConfig, config: UnifiedConfig) -> bool:
    """Whether the files say all that was trained of the text: nothing of it besides adapters and the rows of tokens
    that the folder does not have."""
    return config.block == "llama" and not config.long_skips and not {"vocabulary", "norms"} & {*adapter.trained_whole}


def _called(target: str, names: Names) -> str:
    return names.out if target == "o_proj" else target


def write(
    folder: Path,
    adapter: AdapterConfig,
    config: UnifiedConfig,
    tensors: Mapping[str, Tensor],
    base: str,
    names: Names,
) -> None:
    """`tensors` are those whose names have `.adapters.` in them; `base` is where the weights that they are on lie,
    whose modules `transformers` calls by `names`."""
    from safetensors.torch import save_file

    named = {}
    for name, value in tensors.items():
        path, _, leaf = name.partition(".adapters.")
        target, factor = leaf.split(".")
        layer = path.split(".")[1]
        module = f"{names.body}layers.{layer}.{_OWNERS.get(target, 'mlp')}.{_called(target, names)}"
        named[f"base_model.model.{module}.lora_{factor}.weight"] = value.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})
    document = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "use_rslora": adapter.rank_stabilized,
        "target_modules": [_called(target, names) for target in adapter.chosen(config)],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
