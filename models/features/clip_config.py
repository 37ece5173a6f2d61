"""Shape of a CLIP model (arXiv 2103.00020), from the `config.json` that `transformers` writes. Standard library only.

In: the parsed JSON of a CLIPModel or a CLIPVisionModelWithProjection. Out: a `ClipConfig`; and of one with both towers
the JSON again.
Errors: ValueError naming the file and the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omniloom.models.checks import require
from omniloom.models.hf.config_json import Document

ARCHITECTURES = ("CLIPModel", "CLIPVisionModelWithProjection")
ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class TowerConfig:
    """Blocks of one of the two transformers. `activation`: x * sigmoid(1.702 x) for quick_gelu."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str
    norm_eps: float

    def __post_init__(self) -> None:
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width {self.width}")


@dataclass(frozen=True)
class ClipConfig:
    """`image_size`: side of the square that the vision tower reads; `dim`: numbers of an embedding. `text` is None
    where the folder has pictures' tower alone; `length` is the longest text in tokens and `eos` the id of its end."""

    vision: TowerConfig
    image_size: int
    patch_size: int
    dim: int
    text: TowerConfig | None = None
    vocab_size: int = 0
    length: int = 0
    eos: int = 0

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size


def clip_config(values: Any, where: str) -> ClipConfig:
    document = Document(values, where)
    names = document.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        raise document.wrong("architectures", f"one of {', '.join(ARCHITECTURES)}")
    document.only("quantization_config", None)
    both = names[0] == "CLIPModel"
    vision = _part(document, "vision_config") if both else document
    vision.only("num_channels", 3)
    dim = document.integer("projection_dim", 512)
    try:
        config = ClipConfig(
            _tower(vision, width=768, mlp_width=3072, heads=12),
            vision.integer("image_size", 224),
            vision.integer("patch_size", 32),
            dim,
            **(_text(_part(document, "text_config")) if both else {}),
        )
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None
    if config.image_size % config.patch_size:
        raise vision.wrong("image_size", f"a multiple of patch_size {config.patch_size}")
    return config


def clip_document(config: ClipConfig) -> dict[str, Any]:
    """The config.json of a CLIPModel. ValueError where there is no tower of texts."""
    if config.text is None:
        raise ValueError("text: expected both towers, got pictures' alone")
    vision = {**_of_tower(config.vision), "image_size": config.image_size, "patch_size": config.patch_size}
    text = {
        **_of_tower(config.text),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.length,
        "eos_token_id": config.eos,
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.dim,
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": config.dim, **vision},
        "text_config": {"model_type": "clip_text_model", "projection_dim": config.dim, **text},
    }


def _of_tower(config: TowerConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
    }


def _text(document: Document) -> dict[str, Any]:
    vocabulary = document.integer("vocab_size", 49408)
    eos = document.integer("eos_token_id", 49407)
    return {
        "text": _tower(document, width=512, mlp_width=2048, heads=8),
        "vocab_size": vocabulary,
        "length": document.integer("max_position_embeddings", 77),
        # Configs from before transformers 4.31 say 2, and mean the last id of the vocabulary.
        "eos": vocabulary - 1 if eos == 2 else eos,
    }


def _tower(document: Document, width: int, mlp_width: int, heads: int) -> TowerConfig:
    activation = document.values.get("hidden_act", "quick_gelu")
    if activation not in ACTIVATIONS:
        raise document.wrong("hidden_act", " or ".join(ACTIVATIONS))
    return TowerConfig(
        width=document.integer("hidden_size", width),
        layers=document.integer("num_hidden_layers", 12),
        heads=document.integer("num_attention_heads", heads),
        mlp_width=document.integer("intermediate_size", mlp_width),
        activation=activation,
        norm_eps=document.number("layer_norm_eps", 1e-5),
    )


def _part(document: Document, key: str) -> Document:
    return Document(document.values.get(key), f"{document.where}: {key}")
