"""The picture tokenizer in the folder of an open model. In: a local folder as `transformers` saves one, or its
`config.json`. Out: a `VQGAN` in eval mode, or its config, which takes no torch.

Read: JanusForConditionalGeneration. Not read: Chameleon's, of which `transformers` has no decoder, and Emu3's, which
is one of videos. Errors: ValueError naming the file and the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omniloom.models.hf.config_json import Document, read_json
from omniloom.models.tokenizer.config import VQGANConfig

if TYPE_CHECKING:
    from omniloom.models.tokenizer.vqgan import VQGAN

ARCHITECTURE = "JanusForConditionalGeneration"
_PREFIX = "model.vqmodel."
_RENAMED = {
    "quant_conv.": "pre_vq.",
    "post_quant_conv.": "post_vq.",
    "quantize.embedding.weight": "codebook.embeddings",
}


def vqgan_config(values: Any, where: str) -> VQGANConfig:
    """Of a parsed `config.json`; `where` names the file in errors."""
    whole = Document(values, where)
    whole.only("architectures", [ARCHITECTURE])
    if not isinstance(whole.values.get("vq_config"), dict):
        raise whole.wrong("vq_config", "an object")
    document = Document(whole.values["vq_config"], f"{where}: vq_config")
    document.only("double_latent", False)
    document.only("in_channels", 3)
    document.only("out_channels", 3)
    factors = document.values.get("channel_multiplier", [1, 1, 2, 2, 4])
    if (
        not isinstance(factors, list)
        or not factors
        or not all(type(factor) is int and factor > 0 for factor in factors)
    ):
        raise document.wrong("channel_multiplier", "a list of positive integers")
    return VQGANConfig(
        channels=document.integer("base_channels", 128),
        multipliers=tuple(factors),
        blocks=document.integer("num_res_blocks", 2),
        width=document.integer("latent_channels", 256),
        latent_dim=document.integer("embed_dim", 8),
        codebook_size=document.integer("num_embeddings", 16384),
        unit_codes=True,
    )


def load_vqgan(folder: str | Path) -> VQGAN:
    import torch

    from omniloom.models.hf.weights import open_checkpoint
    from omniloom.models.tokenizer.vqgan import VQGAN

    folder = Path(folder)
    model = VQGAN(vqgan_config(read_json(folder / "config.json"), str(folder / "config.json")))
    with open_checkpoint(folder) as checkpoint, torch.no_grad():
        for name, value in model.state_dict().items():
            theirs = name
            for old, new in _RENAMED.items():
                theirs = old + name.removeprefix(new) if name.startswith(new) else theirs
            shape = tuple(value.shape)
            if name in ("pre_vq.weight", "post_vq.weight"):  # 1x1 convolutions
                shape = (*shape, 1, 1)
            value.copy_(checkpoint.read(_PREFIX + theirs, shape).view_as(value))
    return model.eval()
