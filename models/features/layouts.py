"""What files of published networks hold: the shape of each tensor by its key. Standard library only.

In: a network's shape, as its config says it. Out: {key: the shapes that fit}. Where a layout leaves a key out
(`num_batches_tracked`, a text tower, class layers) the network does not read it.
    Inception v3   torchvision's names, which the ported weights of 2015-12-05 that FID is defined by have too
    VGG-16, LPIPS  torchvision's `features.N`, and the five heads
    CLIP, SigLIP, DINOv2   folders of `transformers`
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from omniloom.models.features.clip_config import ClipConfig, TowerConfig
from omniloom.models.tokenizer.vit_config import ViTConfig

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]

# Places of VGG-16's convolutions in torchvision's `features`, up to relu1_2, 2_2, 3_3, 4_3, 5_3; a pooling in between.
VGG_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
VGG_WIDTHS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, batch norm (eps 0.001) and ReLU. `valid`: without padding, else by half the kernel on
    each side."""

    name: str
    into: int
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False

    @property
    def padding(self) -> tuple[int, int]:
        return (0, 0) if self.valid else (self.kernel[0] // 2, self.kernel[1] // 2)


Pool = Literal["mean", "halve"]  # 3x3 by one pixel, and the largest of 3x3 by two
Step = Conv | tuple[Conv, Conv] | Pool  # two convolutions of one input stand side by side
Block = tuple[tuple[Step, ...], ...]  # branches, of which the outputs stand side by side

_3, _5, _WIDE, _HIGH = (3, 3), (5, 5), (1, 7), (7, 1)


def _a(into: int, pool: int) -> Block:
    return (
        (Conv("branch1x1", into, 64),),
        (Conv("branch5x5_1", into, 48), Conv("branch5x5_2", 48, 64, _5)),
        (
            Conv("branch3x3dbl_1", into, 64),
            Conv("branch3x3dbl_2", 64, 96, _3),
            Conv("branch3x3dbl_3", 96, 96, _3),
        ),
        ("mean", Conv("branch_pool", into, pool)),
    )


def _b(into: int) -> Block:
    return (
        (Conv("branch3x3", into, 384, _3, 2, True),),
        (
            Conv("branch3x3dbl_1", into, 64),
            Conv("branch3x3dbl_2", 64, 96, _3),
            Conv("branch3x3dbl_3", 96, 96, _3, 2, True),
        ),
        ("halve",),
    )


def _c(into: int, inner: int) -> Block:
    return (
        (Conv("branch1x1", into, 192),),
        (
            Conv("branch7x7_1", into, inner),
            Conv("branch7x7_2", inner, inner, _WIDE),
            Conv("branch7x7_3", inner, 192, _HIGH),
        ),
        (
            Conv("branch7x7dbl_1", into, inner),
            Conv("branch7x7dbl_2", inner, inner, _HIGH),
            Conv("branch7x7dbl_3", inner, inner, _WIDE),
            Conv("branch7x7dbl_4", inner, inner, _HIGH),
            Conv("branch7x7dbl_5", inner, 192, _WIDE),
        ),
        ("mean", Conv("branch_pool", into, 192)),
    )


def _d(into: int) -> Block:
    return (
        (Conv("branch3x3_1", into, 192), Conv("branch3x3_2", 192, 320, _3, 2, True)),
        (
            Conv("branch7x7x3_1", into, 192),
            Conv("branch7x7x3_2", 192, 192, _WIDE),
            Conv("branch7x7x3_3", 192, 192, _HIGH),
            Conv("branch7x7x3_4", 192, 192, _3, 2, True),
        ),
        ("halve",),
    )


def _e(into: int) -> Block:
    def fork(name: str) -> tuple[Conv, Conv]:
        return Conv(f"{name}a", 384, 384, (1, 3)), Conv(f"{name}b", 384, 384, (3, 1))

    return (
        (Conv("branch1x1", into, 320),),
        (Conv("branch3x3_1", into, 384), fork("branch3x3_2")),
        (Conv("branch3x3dbl_1", into, 448), Conv("branch3x3dbl_2", 448, 384, _3), fork("branch3x3dbl_3")),
        ("mean", Conv("branch_pool", into, 192)),
    )


# The whole network in order (arXiv 1512.00567): convolutions and poolings, then blocks of branches by name.
INCEPTION_STEM: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", 3, 32, _3, 2, True),
    Conv("Conv2d_2a_3x3", 32, 32, _3, valid=True),
    Conv("Conv2d_2b_3x3", 32, 64, _3),
    "halve",
    Conv("Conv2d_3b_1x1", 64, 80),
    Conv("Conv2d_4a_3x3", 80, 192, _3, valid=True),
    "halve",
)
INCEPTION_BLOCKS: dict[str, Block] = {
    "Mixed_5b": _a(192, 32),
    "Mixed_5c": _a(256, 64),
    "Mixed_5d": _a(288, 64),
    "Mixed_6a": _b(288),
    "Mixed_6b": _c(768, 128),
    "Mixed_6c": _c(768, 160),
    "Mixed_6d": _c(768, 160),
    "Mixed_6e": _c(768, 192),
    "Mixed_7a": _d(768),
    "Mixed_7b": _e(1280),
    "Mixed_7c": _e(2048),
}
INCEPTION_WIDTH = 2048
FID_CLASSES, IMAGENET_CLASSES = 1008, 1000  # of the ported weights, and of torchvision's


def inception_convs() -> Iterator[tuple[str, Conv]]:
    """(key, convolution) of all of them."""
    for step in INCEPTION_STEM:
        if isinstance(step, Conv):
            yield step.name, step
    for block, branches in INCEPTION_BLOCKS.items():
        for branch in branches:
            for step in branch:
                for conv in step if isinstance(step, tuple) else (step,):
                    if isinstance(conv, Conv):
                        yield f"{block}.{conv.name}", conv


def inception_tensors() -> Shapes:
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    for key, conv in inception_convs():
        found[f"{key}.conv.weight"] = ((conv.out, conv.into, *conv.kernel),)
        for name in ("weight", "bias", "running_mean", "running_var"):
            found[f"{key}.bn.{name}"] = ((conv.out,),)
    found["fc.weight"] = tuple((classes, INCEPTION_WIDTH) for classes in (FID_CLASSES, IMAGENET_CLASSES))
    return found


def vgg_tensors() -> Shapes:
    found: dict[str, tuple[tuple[int, ...], ...]] = {}
    channels = 3
    for width, block in zip(VGG_WIDTHS, VGG_BLOCKS, strict=True):
        for place in block:
            found[f"features.{place}.weight"] = ((width, channels, 3, 3),)
            found[f"features.{place}.bias"] = ((width,),)
            channels = width
    return found


def head_tensors(published: bool = True) -> Shapes:
    """The five LPIPS heads, under their published names or short ones."""
    middle = ".model.1" if published else ""
    return {f"lin{i}{middle}.weight": ((1, width, 1, 1), (width,)) for i, width in enumerate(VGG_WIDTHS)}


def dinov2_tensors(config: ViTConfig) -> Shapes:
    width, registers = config.width, config.prefix - 1
    found: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, 1 + config.grid**2, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, config.patch_size, config.patch_size),
        "embeddings.patch_embeddings.projection.bias": (width,),
        **_norm("layernorm", width),
    }
    if registers:
        found["embeddings.register_tokens"] = (1, registers, width)
    gated = config.activation == "swiglu"
    into, out = ("weights_in", "weights_out") if gated else ("fc1", "fc2")
    for number in range(config.layers):
        layer = f"encoder.layer.{number}"
        for name in ("query", "key", "value"):
            found |= _linear(f"{layer}.attention.attention.{name}", width, width)
        found |= _linear(f"{layer}.attention.output.dense", width, width)
        found |= {f"{layer}.layer_scale{n}.lambda1": (width,) for n in (1, 2)}
        found |= _norm(f"{layer}.norm1", width) | _norm(f"{layer}.norm2", width)
        found |= _linear(f"{layer}.mlp.{into}", width, config.mlp_width * (2 if gated else 1))
        found |= _linear(f"{layer}.mlp.{out}", config.mlp_width, width)
    return {key: (shape,) for key, shape in found.items()}


def dual_tensors(config: ClipConfig) -> Shapes:
    """Of a CLIP or a SigLIP."""
    return _siglip_tensors(config) if config.family == "siglip" else _clip_tensors(config)


def _siglip_tensors(config: ClipConfig) -> Shapes:
    vision, text = config.vision, config.text
    if text is None:
        raise ValueError("text: expected both towers, got pictures' alone")
    width, head = vision.width, "vision_model.head"
    found: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, config.patch_size, config.patch_size),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "vision_model.embeddings.position_embedding.weight": (config.grid**2, width),
        **_tower("vision_model", vision),
        **_norm("vision_model.post_layernorm", width),
        f"{head}.probe": (1, 1, width),
        f"{head}.attention.in_proj_weight": (3 * width, width),
        f"{head}.attention.in_proj_bias": (3 * width,),
        **_linear(f"{head}.attention.out_proj", width, width),
        **_norm(f"{head}.layernorm", width),
        **_linear(f"{head}.mlp.fc1", width, vision.mlp_width),
        **_linear(f"{head}.mlp.fc2", vision.mlp_width, width),
        "text_model.embeddings.token_embedding.weight": (config.vocab_size, text.width),
        "text_model.embeddings.position_embedding.weight": (config.length, text.width),
        **_tower("text_model", text),
        **_norm("text_model.final_layer_norm", text.width),
        **_linear("text_model.head", text.width, config.dim),
    }
    return {key: (shape,) for key, shape in found.items()}


def _clip_tensors(config: ClipConfig) -> Shapes:
    vision, text = config.vision, config.text
    root, width = "vision_model", vision.width
    found: dict[str, tuple[int, ...]] = {
        f"{root}.embeddings.class_embedding": (width,),
        f"{root}.embeddings.patch_embedding.weight": (width, 3, config.patch_size, config.patch_size),
        f"{root}.embeddings.position_embedding.weight": (1 + config.grid**2, width),
        **_norm(f"{root}.pre_layrnorm", width),
        **_norm(f"{root}.post_layernorm", width),
        "visual_projection.weight": (config.dim, width),
        **_tower(root, vision),
    }
    if text:
        found |= {
            "text_model.embeddings.token_embedding.weight": (config.vocab_size, text.width),
            "text_model.embeddings.position_embedding.weight": (config.length, text.width),
            **_norm("text_model.final_layer_norm", text.width),
            "text_projection.weight": (config.dim, text.width),
            **_tower("text_model", text),
        }
    return {key: (shape,) for key, shape in found.items()}


def _tower(root: str, config: TowerConfig) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for number in range(config.layers):
        layer = f"{root}.encoder.layers.{number}"
        for name in ("q", "k", "v", "out"):
            found |= _linear(f"{layer}.self_attn.{name}_proj", config.width, config.width)
        found |= _norm(f"{layer}.layer_norm1", config.width) | _norm(f"{layer}.layer_norm2", config.width)
        found |= _linear(f"{layer}.mlp.fc1", config.width, config.mlp_width)
        found |= _linear(f"{layer}.mlp.fc2", config.mlp_width, config.width)
    return found


def _linear(key: str, into: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": (out, into), f"{key}.bias": (out,)}


def _norm(key: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}
