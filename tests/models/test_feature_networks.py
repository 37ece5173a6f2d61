"""Feature networks against torch-fidelity's and `transformers`' own, with random weights in the published layouts."""

from __future__ import annotations

import math

import feature_references
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omniloom.models.features import layouts
from omniloom.models.features.dual import load_dual
from omniloom.models.features.inception import Inception, resized_like_tensorflow1
from omniloom.models.tokenizer.vit import load_vit
from omniloom.models.tokenizer.vit_config import vit_config

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(32, 48), (299, 299), (400, 310), (1, 1)])
def test_the_resize_is_that_of_tensorflow_1(size):
    x = torch.from_numpy(RNG.integers(0, 256, (2, 3, *size)).astype(np.float32))
    found = resized_like_tensorflow1(x, 299)
    h, w = size
    for y_out, x_out in ((0, 0), (7, 290), (298, 298), (150, 13)):  # by its definition
        y_in, x_in = np.float32(y_out) * np.float32(h / 299), np.float32(x_out) * np.float32(w / 299)
        y, dy, at, dx = int(y_in), y_in - int(y_in), int(x_in), x_in - int(x_in)
        down, right = min(y + 1, h - 1), min(at + 1, w - 1)
        top = x[..., y, at] * (1 - dx) + x[..., y, right] * dx
        bottom = x[..., down, at] * (1 - dx) + x[..., down, right] * dx
        torch.testing.assert_close(found[..., y_out, x_out], top * (1 - dy) + bottom * dy, rtol=1e-4, atol=1e-3)
    module = feature_references.torch_fidelity("interpolate_compat_tensorflow")
    expected = module.interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)


def test_inception_is_that_of_torch_fidelity(tmp_path):
    module = feature_references.torch_fidelity("feature_extractor_inceptionv3")
    state = feature_references.inception_state()
    torch.save(state, tmp_path / "weights.pth")
    theirs = module.FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth")
    )
    pictures = torch.from_numpy(RNG.integers(0, 256, (2, 3, 40, 32)).astype(np.uint8))
    expected = theirs(pictures)[0]
    found = Inception(state)(pictures)
    assert found.shape == (2, 2048) and expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert "2015-12-05" in Inception(state).preprocessing


def test_inception_gives_what_torch_fidelity_gave():
    """torch-fidelity 0.4's features of one picture under the same weights, kept here for where it is not installed."""
    picture = (torch.arange(3 * 40 * 32).reshape(1, 3, 40, 32) * 37 % 256).to(torch.uint8)
    found = Inception(feature_references.inception_state())(picture)[0]
    expected = torch.tensor([0.0, 0.0173983, 0.0, 0.3158851, 0.3418478, 0.5306926])
    torch.testing.assert_close(found[:6], expected, rtol=1e-4, atol=1e-4)
    assert float(found.mean()) == pytest.approx(0.1703934, abs=1e-5)


def test_torchvisions_weights_are_another_network():
    """Its mean poolings count the padding, the last block's too, and it says that no published figure compares."""
    state = feature_references.inception_state()
    ported, own = Inception(state), Inception({**state, "fc.weight": state["fc.weight"][: layouts.IMAGENET_CLASSES]})
    pictures = torch.from_numpy(RNG.integers(0, 256, (1, 3, 299, 299)).astype(np.uint8))
    assert (ported(pictures) - own(pictures)).abs().max() > 0.01
    assert "no published" in own.preprocessing
    x = torch.ones(1, 4, 5, 5)
    own._by_maximum = ported._by_maximum = False
    assert own._pooled(x)[0, 0, 0, 0] == pytest.approx(4 / 9) and ported._pooled(x)[0, 0, 0, 0] == 1


SHAPES = {
    "dinov2": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42, "patch_size": 14},
}


@pytest.fixture
def randomly():
    torch.manual_seed(0)

    def fill(model):
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.05 * torch.randn_like(value))
        return model.eval()

    return fill


@pytest.mark.parametrize("registers", [0, 3])
def test_the_class_token_is_that_of_transformers(tmp_path, randomly, registers):
    import transformers

    name = "Dinov2WithRegisters" if registers else "Dinov2"
    more = {"num_register_tokens": registers} if registers else {}
    config = getattr(transformers, f"{name}Config")(**SHAPES["dinov2"], **more)
    theirs = randomly(getattr(transformers, f"{name}Model")(config))
    theirs.save_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 28, 56) - 0.5
    ours = load_vit(tmp_path)
    with torch.no_grad():
        expected = theirs((pixels + 0.5 - ours.mean) / ours.std).pooler_output
        found = ours.class_token(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    layout = layouts.dinov2_tensors(vit_config(config.to_dict() | {"architectures": [f"{name}Model"]}, "config.json"))
    held = {key: tuple(value.shape) for key, value in load_file(tmp_path / "model.safetensors").items()}
    assert {key: shapes for key, (shapes,) in layout.items()} == {
        key: shape for key, shape in held.items() if key != "embeddings.mask_token"
    }


VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 20,
    "eos_token_id": 98,
    "bos_token_id": 97,
    "pad_token_id": 1,
}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_is_that_of_transformers(tmp_path, randomly, activation):
    from transformers import CLIPConfig, CLIPModel

    parts = {
        f"{name}_config": {**shape, "hidden_act": activation} for name, shape in (("vision", VISION), ("text", TEXT))
    }
    theirs = randomly(CLIPModel(CLIPConfig(**parts, projection_dim=16)))
    theirs.save_pretrained(tmp_path)
    ours, _ = load_dual(tmp_path)
    pixels, texts = torch.randn(3, 3, 32, 32), [[97, 5, 6, 98], [97, 98], [97, *range(2, 19), 98]]
    longest = max(map(len, texts))
    padded = torch.tensor([[*ids, *[1] * (longest - len(ids))] for ids in texts])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts])
    with torch.no_grad():
        pictures = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
        written = theirs.text_projection(theirs.text_model(padded, attention_mask=mask).pooler_output)
    torch.testing.assert_close(ours.of_pictures(pixels), pictures, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.of_texts(texts), written, rtol=1e-4, atol=1e-5)


def test_siglip_is_that_of_transformers(tmp_path, randomly):
    from transformers import SiglipConfig, SiglipModel

    shape = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 40}
    words = {"vocab_size": 99, "max_position_embeddings": 12, "bos_token_id": 97, "eos_token_id": 98}
    config = SiglipConfig(text_config={**shape, **words}, vision_config={**shape, "image_size": 32, "patch_size": 8})
    theirs = randomly(SiglipModel(config))
    theirs.save_pretrained(tmp_path)
    ours, logits = load_dual(tmp_path)
    pixels, texts = torch.randn(3, 3, 32, 32), [[5, 6, 98], [98], [*range(2, 14)]]
    padded = torch.tensor([[*ids, *[1] * (12 - len(ids))] for ids in texts])  # as its processor fills them: no mask
    with torch.no_grad():
        found = theirs(input_ids=padded, pixel_values=pixels)
        pictures, written = ours.of_pictures(pixels), ours.of_texts(texts)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(pictures, dim=-1), found.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(unit(written, dim=-1), found.text_embeds, rtol=1e-4, atol=1e-5)
    product = unit(pictures, dim=-1) @ unit(written, dim=-1).T
    by_logits = product * math.exp(logits["logit_scale"]) + logits["logit_bias"]
    torch.testing.assert_close(by_logits, found.logits_per_image, rtol=1e-4, atol=1e-4)


def test_the_pictures_tower_alone(tmp_path, randomly):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    theirs = randomly(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)))
    theirs.save_pretrained(tmp_path)
    (ours, _), pixels = load_dual(tmp_path), torch.randn(2, 3, 32, 32)
    assert ours.config.text is None
    with torch.no_grad():
        torch.testing.assert_close(ours.of_pictures(pixels), theirs(pixels).image_embeds, rtol=1e-4, atol=1e-5)
