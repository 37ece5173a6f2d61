"""The frozen vision encoder: the features of `transformers`' own models, at any size; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import image_utils

from omniloom.models.tokenizer.vit import ViT, load_vit
from omniloom.models.tokenizer.vit_config import ViTConfig, vit_config

SHAPE = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES = {
    "siglip": ("SiglipVision", {"intermediate_size": 80}),
    "siglip-gelu": ("SiglipVision", {"intermediate_size": 80, "hidden_act": "gelu", "layer_norm_eps": 1e-3}),
    "siglip-no-head": ("SiglipVision", {"intermediate_size": 80, "vision_use_head": False}),
    "siglip-text": ("Siglip", {"vision_config": {**SHAPE, "intermediate_size": 80}, "text_config": TEXT}),
    "clip": ("CLIPVision", {"intermediate_size": 80}),
    "clip-gelu": ("CLIPVision", {"intermediate_size": 80, "hidden_act": "gelu", "layer_norm_eps": 1e-3}),
    "clip-text": ("CLIP", {"vision_config": {**SHAPE, "intermediate_size": 80}, "text_config": TEXT}),
    "dinov2": ("Dinov2", {"mlp_ratio": 2}),
    "dinov2-swiglu": ("Dinov2", {"mlp_ratio": 2, "use_swiglu_ffn": True}),
    "dinov2-registers": ("Dinov2WithRegisters", {"mlp_ratio": 2, "num_register_tokens": 3}),
}
BOTH_TOWERS = ("Siglip", "CLIP")
SIZES = [(32, 32), (32, 48), (64, 16), (16, 64), (24, 24), (8, 8), (96, 72)]  # (16, 64): as many patches as learned


def make(folder: Path, case: str, dtype: torch.dtype = torch.float32, shard: str = "5GB"):
    """A random model, saved by `transformers` itself, its biases and norms moved from 0 and 1; and its vision part."""
    torch.manual_seed(0)
    family, fields = CASES[case]
    config = getattr(transformers, f"{family}Config")(**({} if family in BOTH_TOWERS else SHAPE), **fields)
    model = getattr(transformers, f"{family}Model")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            ones = "norm" in name or "scale" in name
            parameter.uniform_(0.5, 1.5) if ones else parameter.normal_(std=0.2)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    model = model.float().eval()
    return model.vision_model if family in BOTH_TOWERS else model


def expected(model, pixels: Tensor, mean, std) -> Tensor:
    """The last hidden state's patches (B, h, w, C), from pixels in [-0.5, 0.5]."""
    pixels = (pixels + 0.5 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    clip, siglip = ("CLIP" in type(model).__name__, "Siglip" in type(model).__name__)
    with torch.no_grad():
        out = model(pixels, **({"interpolate_pos_encoding": True} if clip or siglip else {})).last_hidden_state
        if clip:  # its final norm is applied to the class token alone there
            out = getattr(model, "vision_model", model).post_layernorm(out)
    h, w = (side // 8 for side in pixels.shape[2:])
    return out[:, out.shape[1] - h * w :].unflatten(1, (h, w))


def pixels(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1)) - 0.5


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS = {
    "siglip": ((0.5,) * 3, (0.5,) * 3),
    "dinov2": IMAGENET,
    "clip": (image_utils.OPENAI_CLIP_MEAN, image_utils.OPENAI_CLIP_STD),
}


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_transformers(tmp_path, case):
    reference = make(tmp_path, case)
    model = load_vit(tmp_path)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    mean, std = PIXELS[case.partition("-")[0]]
    for height, width in SIZES:
        wanted = expected(reference, pixels(height, width), mean, std)
        found = model(pixels(height, width))
        assert found.shape == (2, height // 8, width // 8, 48) and wanted.abs().max() > 1
        assert (found - wanted).abs().max() < 1e-4
        plain = model(pixels(height, width), affine=False)
        torch.testing.assert_close(plain * model.norm.weight + model.norm.bias, found)


@pytest.mark.parametrize("case", ["siglip", "dinov2-registers"])
def test_shards_and_half_precision(tmp_path, case):
    for dtype in (torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        reference = make(folder, case, dtype, shard="20KB")
        assert (folder / "model.safetensors.index.json").is_file()
        model = load_vit(folder)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        wanted = expected(reference, pixels(32, 48), model.config.mean, model.config.std)
        assert (model(pixels(32, 48)) - wanted).abs().max() < 1e-4


def test_pixels_are_normalised_as_the_preprocessor_says(tmp_path):
    reference = make(tmp_path, "siglip")
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": True, "image_mean": mean, "image_std": std, "rescale_factor": 0.00392156862745098})
    )
    model = load_vit(tmp_path)
    assert (model.config.mean, model.config.std) == (tuple(mean), tuple(std))
    assert (model(pixels(24, 24)) - expected(reference, pixels(24, 24), mean, std)).abs().max() < 1e-4


def test_published_configs_leave_out_what_is_default():
    """SigLIP's config.json names little of its vision part; the shape is then that of ViT-B/16."""
    config = vit_config({"architectures": ["SiglipModel"], "vision_config": {"model_type": "siglip_vision_model"}}, "f")
    own = transformers.SiglipVisionConfig()
    assert (config.width, config.layers, config.heads, config.mlp_width, config.patch_size, config.grid) == (
        own.hidden_size,
        own.num_hidden_layers,
        own.num_attention_heads,
        own.intermediate_size,
        16,
        14,
    )
    for name, kind in (
        ("Dinov2Model", transformers.Dinov2Config),
        ("Dinov2WithRegistersModel", transformers.Dinov2WithRegistersConfig),
    ):
        config, own = vit_config({"architectures": [name]}, "f"), kind()
        assert (config.width, config.mlp_width, config.patch_size, config.grid) == (
            own.hidden_size,
            own.hidden_size * own.mlp_ratio,
            own.patch_size,
            224 // own.patch_size,
        )
        assert config.prefix == 1 + getattr(own, "num_register_tokens", 0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"architectures": ["Siglip2VisionModel"]}, "architectures: expected one of SiglipVisionModel, .* got"),
        ({"architectures": None}, "architectures: expected one of"),
        ({"hidden_act": "relu"}, "hidden_act: expected gelu or gelu_pytorch_tanh or quick_gelu, got 'relu'"),
        ({"image_size": [32, 48]}, "image_size: expected a square"),
        ({"patch_size": 40}, "image_size: expected at least"),
        ({"num_channels": 4}, "num_channels: expected 3"),
        ({"hidden_size": "48"}, "hidden_size: expected a positive int"),
        ({"num_attention_heads": 5}, "ViTConfig.heads: expected a divisor of width 48, got 5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected None"),
    ],
)
def test_a_config_that_is_not_read_names_file_and_key(tmp_path, changes, message):
    make(tmp_path, "siglip")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=rf"{file}: {message}"):
        load_vit(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_mean": [0.5]}, "image_mean: expected three numbers"),
        ({"image_std": [1, 1, 0]}, "image_std: .* above 0"),
        ({"do_normalize": False}, "do_normalize: expected True"),
        ({"rescale_factor": 1}, "rescale_factor: expected 1/2"),
    ],
)
def test_a_preprocessor_that_is_not_read_names_file_and_key(tmp_path, changes, message):
    make(tmp_path, "dinov2")
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(changes))
    with pytest.raises(ValueError, match=f"{file}: {message}"):
        load_vit(tmp_path)


@pytest.mark.parametrize(
    "case, change, message",
    [
        ("siglip", lambda t: t.pop("encoder.layers.1.mlp.fc2.bias"), "encoder.layers.1.mlp.fc2.bias: missing"),
        (
            "dinov2",
            lambda t: t.update({"layernorm.weight": torch.ones(7)}),
            r"layernorm.weight: expected shape \(48,\)",
        ),
        (
            "dinov2",
            lambda t: t.update({"embeddings.cls_token": torch.ones(1, 1, 48, dtype=torch.int32)}),
            "embeddings.cls_token: expected float32",
        ),
        (
            "siglip",
            lambda t: t.update({"encoder.layers.3.mlp.fc2.bias": torch.ones(48)}),
            "encoder.layers.3.mlp.fc2.bias: config.json has no place",
        ),
        (
            "dinov2",
            lambda t: t.update({"embeddings.register_tokens": torch.ones(1, 4, 48)}),
            "embeddings.register_tokens: config.json has no place",
        ),
    ],
)
def test_tensors_that_do_not_fit_name_file_and_key(tmp_path, case, change, message):
    make(tmp_path, case)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(ValueError, match=rf"{file}: {message}"):
        load_vit(tmp_path)


def test_a_folder_without_an_encoder(tmp_path):
    with pytest.raises(ValueError, match=r"config.json: cannot be read"):
        load_vit(tmp_path)
    make(tmp_path, "siglip")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds neither model.safetensors nor"):
        load_vit(tmp_path)


def test_pixels_that_do_not_fit():
    model = ViT(ViTConfig(width=8, layers=1, heads=2, mlp_width=8, patch_size=8, grid=2))
    for shape in ((1, 3, 20, 16), (1, 3, 0, 16), (1, 4, 16, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match="pixels: expected .* multiples of 8, got"):
            model(torch.zeros(shape))
