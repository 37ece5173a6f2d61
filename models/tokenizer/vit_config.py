"""Shape of a frozen vision encoder, and what a checkpoint's `config.json` says of it. Standard library only.

In: the parsed JSON, as `transformers` writes it: `config.json`, and `preprocessor_config.json` where there is one.
Out: a `ViTConfig`.
Read: SiglipVisionModel and the vision part of SiglipModel (SigLIP 2's checkpoints of one resolution are of that
architecture), Dinov2Model, Dinov2WithRegistersModel, CLIPVisionModel, and the vision part of CLIPModel and
CLIPVisionModelWithProjection. Anything that would change what the encoder computes and is not
read here is a ValueError that names the file and the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from omniloom.models.checks import require
from omniloom.models.features.clip_config import MEAN, STD
from omniloom.models.hf.config_json import Document

_CLIP = ("CLIPVisionModel", "CLIPModel", "CLIPVisionModelWithProjection")
ARCHITECTURES = ("SiglipVisionModel", "SiglipModel", "Dinov2Model", "Dinov2WithRegistersModel", *_CLIP)
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
# Of ImageNet's pixels, which DINOv2 sees normalised.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer's shape.

    width, layers, heads: of the residual stream and its blocks; mlp_width: inside the feed-forward.
    patch_size: pixels a side of a patch; grid: patches a side of the square that the positions were learned on.
    prefix: tokens before the patches, the class token and registers.
    pre_norm: whether tokens are normalised before the first block, as CLIP's.
    activation: of the feed-forward; `swiglu` gates it, `quick_gelu` is x * sigmoid(1.702 x).
    antialias: of the positions' interpolation to a smaller grid.
    mean, std: by which pixels in [0, 1] are normalised, by colour.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    patch_size: int
    grid: int
    prefix: int = 0
    pre_norm: bool = False
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "swiglu"] = "gelu"
    norm_eps: float = 1e-6
    antialias: bool = False
    mean: Colour = (0.5, 0.5, 0.5)
    std: Colour = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON and YAML have no tuples
            require(len(getattr(self, name)) == 3, self, name, "three numbers, one a colour")
        for name in ("width", "layers", "heads", "mlp_width", "patch_size", "grid"):
            require(getattr(self, name) >= 1, self, name, "an integer of at least 1")
        require(self.width % self.heads == 0, self, "heads", f"a divisor of width {self.width}")
        require(self.prefix >= 0, self, "prefix", "an integer of at least 0")
        activations = ("gelu", "gelu_tanh", "quick_gelu", "swiglu")
        require(self.activation in activations, self, "activation", f"one of {', '.join(activations)}")
        require(self.norm_eps > 0, self, "norm_eps", "a positive number")
        require(min(self.std) > 0, self, "std", "positive numbers")


def vit_config(values: Any, where: str, preprocessor: Any = None, preprocessor_where: str = "") -> ViTConfig:
    """The encoder of a checkpoint. `where` and `preprocessor_where` name the files in errors.

    Without a `preprocessor` pixels are normalised as the architecture's own does by default.
    """
    document = Document(values, where)
    names = document.values.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in ARCHITECTURES:
        raise document.wrong("architectures", f"one of {', '.join(ARCHITECTURES)}")
    document.only("quantization_config", None)
    read = _clip if names[0] in _CLIP else _siglip if names[0].startswith("Siglip") else _dinov2
    shape = read(document, names[0])
    if preprocessor is not None:
        shape |= _normalisation(Document(preprocessor, preprocessor_where))
    try:
        return ViTConfig(**shape)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _siglip(document: Document, name: str) -> dict[str, Any]:
    if name == "SiglipModel":
        document = Document(document.values.get("vision_config"), f"{document.where}: vision_config")
    return {
        **_common(document, patch_size=16),
        "mlp_width": document.integer("intermediate_size", 3072),
        "activation": _activation(document, "gelu_pytorch_tanh"),
    }


def _clip(document: Document, name: str) -> dict[str, Any]:
    if name == "CLIPModel":
        document = Document(document.values.get("vision_config"), f"{document.where}: vision_config")
    return {
        **_common(document, patch_size=32),
        "mlp_width": document.integer("intermediate_size", 3072),
        "activation": _activation(document, "quick_gelu"),
        "norm_eps": document.number("layer_norm_eps", 1e-5),
        "prefix": 1,
        "pre_norm": True,
        "mean": MEAN,
        "std": STD,
    }


def _dinov2(document: Document, name: str) -> dict[str, Any]:
    registers = name == "Dinov2WithRegistersModel"
    common = _common(document, patch_size=16 if registers else 14)
    inner, activation = int(common["width"] * document.number("mlp_ratio", 4)), _activation(document, "gelu")
    if document.flag("use_swiglu_ffn"):
        # Two thirds, rounded up to a multiple of 8: the gate is a third matrix.
        inner, activation = -(-int(inner * 2 / 3) // 8) * 8, "swiglu"
    prefix = 1 + (document.integer("num_register_tokens", 4) if registers else 0)
    return {
        **common,
        "mlp_width": inner,
        "activation": activation,
        "prefix": prefix,
        "antialias": registers,
        "mean": _IMAGENET_MEAN,
        "std": _IMAGENET_STD,
    }


def _common(document: Document, patch_size: int) -> dict[str, Any]:
    document.only("num_channels", 3)
    size, patch = _side(document, "image_size", 224), _side(document, "patch_size", patch_size)
    if size < patch:
        raise document.wrong("image_size", f"at least patch_size {patch}")
    return {
        "width": document.integer("hidden_size", 768),
        "layers": document.integer("num_hidden_layers", 12),
        "heads": document.integer("num_attention_heads", 12),
        "patch_size": patch,
        "grid": size // patch,
        "norm_eps": document.number("layer_norm_eps", 1e-6),
    }


def _side(document: Document, key: str, default: int) -> int:
    """Pixels a side of a square, written as a number or as two equal ones."""
    value = document.values.get(key)
    if isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise document.wrong(key, "a square")
        return Document({key: value[0]}, document.where).integer(key)
    return document.integer(key, default)


def _activation(document: Document, default: str) -> str:
    name = document.values.get("hidden_act", default)
    if name not in _ACTIVATIONS:
        raise document.wrong("hidden_act", " or ".join(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def _normalisation(document: Document) -> dict[str, Colour]:
    """Mean and standard deviation as far as an image processor's file names them."""
    document.only("do_normalize", True, None)
    document.only("do_rescale", True, None)
    if abs(document.number("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise document.wrong("rescale_factor", "1/255")
    found = {}
    for key in ("image_mean", "image_std"):
        if (value := document.values.get(key)) is None:
            continue
        numbers = (
            isinstance(value, list)
            and len(value) == 3
            and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        )
        if not numbers or (key == "image_std" and min(value) <= 0):
            raise document.wrong(key, "three numbers" + (" above 0" if key == "image_std" else ""))
        red, green, blue = map(float, value)
        found[key.removeprefix("image_")] = (red, green, blue)
    return found
