"""Shape of a CLIP (arXiv 2103.00020) or a SigLIP (arXiv 2303.15343), from the `config.json` that `transformers` writes.
Standard library only.

In: the parsed JSON of a CLIPModel, a CLIPVisionModelWithProjection or a SiglipModel. Out: a `ClipConfig`; and of one
with both towers the JSON again.
Errors: ValueError naming the file and the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from omniloom.models.checks import require
from omniloom.models.hf.config_json import Document

# By which all releases of CLIP see pixels in [0, 1] normalised.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ARCHITECTURES = ("CLIPModel", "CLIPVisionModelWithProjection", "SiglipModel")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class TowerConfig:
    """Blocks of one of the two transformers. `activation`: x * sigmoid(1.702 x) for quick_gelu, the approximation by
    tanh for gelu_pytorch_tanh."""

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
    where the folder has pictures' tower alone; `length` is the longest text in tokens and `eos` the id of its end.
    SigLIP's towers read all of a text, filled up to `length` with `pad`, and say nothing of an end."""

    vision: TowerConfig
    image_size: int
    patch_size: int
    dim: int
    text: TowerConfig | None = None
    vocab_size: int = 0
    length: int = 0
    eos: int | None = None
    family: Literal["clip", "siglip"] = "clip"
    pad: int = 0

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size


def clip_config(values: Any, where: str) -> ClipConfig:
    document = Document(values, where)
    names = document.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        raise document.wrong("architectures", f"one of {', '.join(ARCHITECTURES)}")
    document.only("quantization_config", None)
    read = _siglip if names[0] == "SiglipModel" else _clip
    try:
        config = read(document, names[0] != "CLIPVisionModelWithProjection")
    except ValueError as error:
        raise ValueError(str(error) if where in str(error) else f"{where}: {error}") from None
    if config.image_size % config.patch_size:
        raise document.wrong("image_size", f"a multiple of patch_size {config.patch_size}")
    return config


def _clip(document: Document, both: bool) -> ClipConfig:
    vision = _part(document, "vision_config") if both else document
    vision.only("num_channels", 3)
    return ClipConfig(
        _tower(vision, _Usual(768, 3072, 12)),
        vision.integer("image_size", 224),
        vision.integer("patch_size", 32),
        document.integer("projection_dim", 512),
        **(_text(_part(document, "text_config")) if both else {}),
    )


def _siglip(document: Document, both: bool) -> ClipConfig:
    vision, text = _part(document, "vision_config"), _part(document, "text_config")
    vision.only("num_channels", 3)
    vision.only("vision_use_head", True)
    usual = _Usual(768, 3072, 12, "gelu_pytorch_tanh", 1e-6)
    pictures, texts = _tower(vision, usual), _tower(text, usual)
    if (dim := text.integer("projection_size", texts.width)) != pictures.width:
        raise text.wrong("projection_size", f"the width of pictures, {pictures.width}")
    sizes = vision.integer("image_size", 224), vision.integer("patch_size", 16)
    vocabulary, length = text.integer("vocab_size", 32000), text.integer("max_position_embeddings", 64)
    pad = text.values.get("pad_token_id", 1)
    if not isinstance(pad, int) or not 0 <= pad < vocabulary:
        raise text.wrong("pad_token_id", f"0 to {vocabulary - 1}")
    return ClipConfig(pictures, *sizes, dim, texts, vocabulary, length, None, "siglip", pad)


def clip_document(config: ClipConfig) -> dict[str, Any]:
    """The config.json of a CLIPModel or a SiglipModel. ValueError where there is no tower of texts."""
    if config.text is None:
        raise ValueError("text: expected both towers, got pictures' alone")
    vision = {**_of_tower(config.vision), "image_size": config.image_size, "patch_size": config.patch_size}
    text = {
        **_of_tower(config.text),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.length,
    }
    if config.family == "siglip":
        return {
            "architectures": ["SiglipModel"],
            "model_type": "siglip",
            "vision_config": {"model_type": "siglip_vision_model", **vision},
            "text_config": {
                "model_type": "siglip_text_model",
                "projection_size": config.dim,
                "pad_token_id": config.pad,
                # A text has no such marks here, and the usual ids may lie beyond the vocabulary.
                "bos_token_id": None,
                "eos_token_id": None,
                **text,
            },
        }
    text["eos_token_id"] = config.eos
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
        "text": _tower(document, _Usual(512, 2048, 8)),
        "vocab_size": vocabulary,
        "length": document.integer("max_position_embeddings", 77),
        # Configs from before transformers 4.31 say 2, and mean the last id of the vocabulary.
        "eos": vocabulary - 1 if eos == 2 else eos,
    }


class _Usual(NamedTuple):
    """What a config means where it is silent."""

    width: int
    mlp_width: int
    heads: int
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5


def _tower(document: Document, usual: _Usual) -> TowerConfig:
    activation = document.values.get("hidden_act", usual.activation)
    if activation not in ACTIVATIONS:
        raise document.wrong("hidden_act", " or ".join(ACTIVATIONS))
    return TowerConfig(
        width=document.integer("hidden_size", usual.width),
        layers=document.integer("num_hidden_layers", 12),
        heads=document.integer("num_attention_heads", usual.heads),
        mlp_width=document.integer("intermediate_size", usual.mlp_width),
        activation=activation,
        norm_eps=document.number("layer_norm_eps", usual.norm_eps),
    )


def _part(document: Document, key: str) -> Document:
    return Document(document.values.get(key), f"{document.where}: {key}")
